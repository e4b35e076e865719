"""Rows to files: JSON Lines or Parquet, one for each set, and a card by which `datasets.load_dataset` finds them."""

import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from anyloop.datasets.export.conversations import Row, media_columns

FileFormat = Literal["jsonl", "parquet"]
MARK = "# Preferences and critiques, exported by AnyLoop"  # of a folder that an export may replace
_ROWS_AT_ONCE = 128  # in memory before a row group is written


class RowWriter(AbstractContextManager["RowWriter"]):
    """One set's file. `inline`: its media columns hold `{bytes, path}` (Parquet)."""

    def __init__(self, path: Path, set_name: str, form: FileFormat, *, inline: bool) -> None:
        self.rows = 0
        self._waiting: list[Row] = []
        self._form = form
        if form == "jsonl":
            self._file: Any = path.open("w", encoding="utf-8")
            return
        import pyarrow.parquet as parquet

        self._schema = _schema(set_name, inline)
        self._file = parquet.ParquetWriter(path, self._schema)

    def write(self, row: Row) -> None:
        self.rows += 1
        if self._form == "jsonl":
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            return
        self._waiting.append(row)
        if len(self._waiting) == _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._waiting:
            self._file.write_table(pyarrow.Table.from_pylist(self._waiting, schema=self._schema))
            self._waiting.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._file.close()


def card(rows: dict[str, int], form: FileFormat, media: str) -> str:
    """README.md of the folder: its front matter names the sets for `load_dataset(FOLDER, SET)`."""
    lines = ["---", "configs:"]
    for name in rows:
        lines += [f"- config_name: {name}", f"  data_files: {name}.{form}"]
    lines += ["---", "", MARK, ""]
    lines += ["| set | rows | what |", "|---|---|---|"]
    lines += [f"| `{name}` | {count} | {WHAT[name]} |" for name, count in rows.items()]
    lines += ["", "```python", "from datasets import load_dataset", ""]
    first = next(iter(rows), "preference")
    lines += [f'rows = load_dataset("THIS_FOLDER", "{first}", split="train")', "```", ""]
    if any(media_columns(name) for name in rows):
        lines += [_MEDIA[media], ""]
    return "\n".join(lines)


WHAT = {
    "preference": "prompt, chosen, rejected; text only (DPO, reward models)",
    "preference_images": "the same with images in the prompt and text in the answers (vision-language DPO)",
    "preference_media": "the same with media anywhere",
    "critique": "prompt (the answer and what was asked), completion (what is wrong with it); text only (SFT)",
    "critique_media": "the same with media",
    "label": "prompt, completion, label; text only (KTO)",
    "label_media": "the same with media",
}
_MEDIA = {
    "link": "The columns `images`, `audios` and `videos` name files of the object store that the rows were exported "
    'from. `rows.cast_column("images", List(Image()))` (from `datasets`) opens them.',
    "copy": "The columns `images`, `audios` and `videos` name files in `media/`, from this folder. Put its path before "
    'them, then `rows.cast_column("images", List(Image()))` (from `datasets`) opens them.',
    "inline": "The columns `images`, `audios` and `videos` hold the files themselves: in Parquet as `{bytes, path}`, "
    "which `datasets` decodes, in JSON Lines as `data:` URLs.",
}


def sets_of(names: Iterable[str]) -> Iterator[str]:
    """The sets that have rows, in the order of the card."""
    there = set(names)
    return (name for name in WHAT if name in there)


def _schema(set_name: str, inline: bool) -> Any:
    """Every column named, so that a set without a comparison or a sound has the same columns as one with them."""
    import pyarrow as pa

    media = media_columns(set_name)
    part = pa.struct([("type", pa.string()), ("text", pa.string())])
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(part) if media else pa.string())]))
    kind = set_name.partition("_")[0]
    names = ["prompt", "chosen", "rejected"] if kind == "preference" else ["prompt", "completion"]
    columns = [(name, turns) for name in names]
    medium = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if inline else pa.string()
    columns += [(name, pa.list_(medium)) for name in media]
    if kind == "preference":
        columns += [("comparison", pa.string()), ("origin", pa.string())]
    if kind == "label":
        columns.append(("label", pa.bool_()))
    schema = pa.schema([*columns, ("feedback_id", pa.string())])
    return schema.with_metadata(_decoded_by_datasets(schema, media)) if inline and media else schema


def _decoded_by_datasets(schema: Any, media: Iterable[str]) -> dict[str, str]:
    """What `datasets` reads of a Parquet file to know that a column's structs are images and sounds."""
    from datasets import Audio, Features, Image, List, Video

    kinds = {"images": Image(), "audios": Audio(), "videos": Video()}
    features = Features.from_arrow_schema(schema)
    features |= {name: List(kinds[name]) for name in media}
    return {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
