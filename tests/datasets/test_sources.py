"""Records out of every kind of file, the same from each, from any index on."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from anyloop.datasets.sources import SourceError, Unreadable, find_records
from tests.datasets.samples import png

ROWS = [
    {"prompt": f"p{at}", "rate": at % 4, "image": {"bytes": png(at), "path": None}, "array": [0.25 * at, -0.5]}
    for at in range(40)
]
TEXTS = [{"prompt": row["prompt"], "rate": row["rate"]} for row in ROWS]


def write(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "jsonl":
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in TEXTS))
    elif kind == "json":
        (folder / "train.json").write_text(json.dumps(TEXTS))
    elif kind == "lines in json":
        (folder / "train.json").write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
    elif kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), folder / "train-00000-of-00001.parquet", row_group_size=7)
    elif kind == "saved":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from datasets import Dataset, disable_progress_bars

            disable_progress_bars()
            Dataset.from_list(ROWS).save_to_disk(folder, num_shards=2)
        (folder / "cache-0123456789abcdef.arrow").write_bytes(b"what `datasets` keeps beside it")
    return folder


def texts(folder: Path, begin: int = 0) -> list[dict[str, Any]]:
    rows = [row for file in find_records(folder).files for row in file.rows(begin)]
    return [{"prompt": row["prompt"], "rate": row["rate"]} for row in rows if isinstance(row, dict)]


@pytest.mark.parametrize("kind", ["jsonl", "json", "lines in json", "parquet", "saved"])
def test_every_kind_of_file_gives_the_same_records(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path / "data", kind)
    assert texts(folder) == TEXTS
    assert sum(file.count() for file in find_records(folder).files) == 40


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("begin", [1, 7, 23, 39, 40])
def test_reading_begins_at_any_record(tmp_path: Path, kind: str, begin: int) -> None:
    assert texts(write(tmp_path / "data", kind), begin) == TEXTS[begin:]


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_media_come_as_they_are_stored_and_numbers_as_an_array(tmp_path: Path, kind: str) -> None:
    (file, *_) = find_records(write(tmp_path / "data", kind)).files
    row = list(file.rows())[2]
    assert isinstance(row, dict)
    assert row["image"] == {"bytes": png(2), "path": None}
    assert isinstance(row["array"], np.ndarray)
    assert row["array"].tolist() == [0.5, -0.5]


def test_shards_and_folders_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/train-00001-of-00002", "b/train-00000-of-00002", "a/x"):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}\n")
    assert [file.name for file in find_records(tmp_path).files] == [
        "a/x.jsonl",
        "b/train-00000-of-00002.jsonl",
        "b/train-00001-of-00002.jsonl",
    ]


def test_a_line_that_is_no_record_stands_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": \n[1]\n{"a": 2}\n')
    (file,) = find_records(tmp_path).files
    first, broken, listed, last = file.rows()
    assert (first, last) == ({"a": 1}, {"a": 2})
    assert isinstance(broken, Unreadable)
    assert broken.reason.startswith("not JSON")
    assert listed == Unreadable("not an object with keys")


def test_a_text_that_is_no_utf_8_makes_its_record_unreadable_and_no_other(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffc")]
    )
    parquet.write_table(pa.table({"prompt": texts}), tmp_path / "a.parquet")
    (file,) = find_records(tmp_path).files
    first, broken, last = file.rows()
    assert (first, last) == ({"prompt": "a"}, {"prompt": "c"})
    assert isinstance(broken, Unreadable)


def test_what_is_neither_records_nor_media_is_counted(tmp_path: Path) -> None:
    for name in ("a.jsonl", "README.md", "one.mp4", "videos.zip", "more.zip", "x.csv", ".hidden"):
        (tmp_path / name).write_text("{}")
    assert dict(find_records(tmp_path).unread) == {".zip": 2, ".csv": 1}


def test_a_folder_without_records_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "videos.zip").write_bytes(b"")
    with pytest.raises(SourceError, match=r"only 1 \.zip: unpack archives first"):
        find_records(tmp_path)
    with pytest.raises(SourceError, match="is not there"):
        find_records(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.json"])
def test_a_broken_file_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1 and then nothing")
    (file,) = find_records(tmp_path).files
    with pytest.raises(SourceError, match=name):
        list(file.rows())
