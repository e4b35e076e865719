"""Rows as files: types that do not depend on which rows come first, and no more of them in memory than need be."""

import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from anyloop.datasets.export import writer


def row(images: list[Any], sounds: list[Any]) -> dict[str, Any]:
    text = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    shown = [{"role": "assistant", "content": [{"type": "image" if images else "audio"}]}]
    said = {"comparison": "", "origin": "preference", "feedback_id": "f"}
    media = {"images": images, "audios": sounds, "videos": []}
    return {"prompt": text, "chosen": shown, "rejected": shown, **media, **said}


def test_a_column_that_is_empty_for_the_first_megabytes_still_has_its_type(tmp_path: Path) -> None:
    from datasets import disable_progress_bars, load_dataset

    folder = tmp_path / "out"
    folder.mkdir()
    with writer.RowWriter(folder / "preference_media.jsonl", "preference_media", "jsonl", inline=False) as opened:
        for _ in range(12):
            opened.write(row([], ["A" * 2**20]))
        for _ in range(12):
            opened.write(row(["A" * 2**20], []))
    (folder / "README.md").write_text(writer.card({"preference_media": 24}, "jsonl", "inline"))
    disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = load_dataset(str(folder), "preference_media", split="train", cache_dir=str(tmp_path / "cache"))
    assert [len(rows[at]["images"]) for at in (0, 23)] == [0, 1]


@pytest.mark.parametrize("name", writer.WHAT)
def test_the_card_names_the_types_that_a_parquet_file_has(name: str) -> None:
    import yaml
    from datasets import Features

    front = yaml.safe_load(writer.card({name: 1}, "jsonl", "link").split("---")[1])
    (info,) = front["dataset_info"]
    assert info["config_name"] == name
    named = Features._from_yaml_list(info["features"])
    assert named.arrow_schema.remove_metadata() == writer._schema(name, inline=False).remove_metadata()


def test_large_rows_are_written_before_many_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_BYTES_AT_ONCE", 1000)
    with writer.RowWriter(tmp_path / "a.parquet", "preference_media", "parquet", inline=True) as opened:
        for _ in range(6):
            opened.write(row([{"bytes": b"x" * 600, "path": "a.png"}], []))
    assert parquet.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3
