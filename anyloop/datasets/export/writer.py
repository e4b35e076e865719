"""Rows to files: JSON Lines or Parquet, one for each set, and a card by which `datasets.load_dataset` finds them."""

import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from anyloop.datasets.export.conversations import Row, media_columns

Type = str | list[Any] | dict[str, Any]  # of a column: a list holds the type of what it lists
FileFormat = Literal["jsonl", "parquet"]
MARK = "# Preferences and critiques, exported by AnyLoop"  # of a folder that an export may replace
_ROWS_AT_ONCE = 128  # in memory before a row group is written
_PAIR = ("prompt", "chosen", "rejected")
_BYTES_AT_ONCE = 32 * 2**20  # the same: a row may hold videos


class RowWriter(AbstractContextManager["RowWriter"]):
    """One set's file. `inline`: its media columns hold `{bytes, path}` (Parquet)."""

    def __init__(self, path: Path, set_name: str, form: FileFormat, *, inline: bool) -> None:
        self.rows = 0
        self._waiting: list[Row] = []
        self._bytes = 0  # of the rows that wait
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
        self._bytes += _size(row)
        if len(self._waiting) == _ROWS_AT_ONCE or self._bytes >= _BYTES_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._waiting:
            self._file.write_table(pyarrow.Table.from_pylist(self._waiting, schema=self._schema))
            self._waiting.clear()
            self._bytes = 0

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
    if form == "jsonl":  # whose types would be guessed from the first rows: an empty column, then a full one
        lines.append("dataset_info:")
        for name in rows:
            lines += [f"- config_name: {name}", "  features:"]
            lines += [line for column in _columns(name) for line in _feature(*column)]
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


def columns_of(set_name: str) -> tuple[str, ...]:
    """The names of a set's columns: every row has all of them."""
    return tuple(name for name, _ in _columns(set_name))


def _columns(set_name: str) -> list[tuple[str, Type]]:
    media = media_columns(set_name)
    content: Type = [{"type": "string", "text": "string"}] if media else "string"
    turns: Type = [{"role": "string", "content": content}]
    kind = set_name.partition("_")[0]
    columns = [(name, turns) for name in (_PAIR if kind == "preference" else ("prompt", "completion"))]
    columns += [(name, ["string"]) for name in media]
    if kind == "preference":
        columns += [("comparison", "string"), ("origin", "string")]
    if kind == "label":
        columns.append(("label", "bool"))
    return [*columns, ("feedback_id", "string")]


def _feature(name: str, kind: Type, indent: str = "  ") -> list[str]:
    """A column as the card's YAML names it for `datasets`."""
    return [f"{indent}- name: {name}", *_typed(kind, indent + "  ")]


def _typed(kind: Type, indent: str) -> list[str]:
    if isinstance(kind, str):
        return [f"{indent}dtype: {kind}"]
    heading, fields = ("struct", kind) if isinstance(kind, dict) else ("list", kind[0])
    if isinstance(fields, str):
        return [f"{indent}{heading}: {fields}"]
    assert isinstance(fields, dict)  # no list of lists is exported
    return [f"{indent}{heading}:", *(line for name, held in fields.items() for line in _feature(name, held, indent))]


def _size(value: Any) -> int:
    """The bytes of all texts and media in a row, nearly."""
    if isinstance(value, dict):
        return sum(_size(one) for one in value.values())
    if isinstance(value, list):
        return sum(_size(one) for one in value)
    return len(value) if isinstance(value, str | bytes) else 8


def _schema(set_name: str, inline: bool) -> Any:
    """Every column named, so that a set without a comparison or a sound has the same columns as one with them."""
    import pyarrow as pa

    media = media_columns(set_name)

    def arrow(kind: Type) -> Any:
        if isinstance(kind, list):
            return pa.list_(arrow(kind[0]))
        if isinstance(kind, dict):
            return pa.struct([(name, arrow(held)) for name, held in kind.items()])
        return pa.bool_() if kind == "bool" else pa.string()

    medium = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [(name, pa.list_(medium) if inline and name in media else arrow(kind)) for name, kind in _columns(set_name)]
    )
    return schema.with_metadata(_decoded_by_datasets(schema, media)) if inline and media else schema


def _decoded_by_datasets(schema: Any, media: Iterable[str]) -> dict[str, str]:
    """What `datasets` reads of a Parquet file to know that a column's structs are images and sounds."""
    from datasets import Audio, Features, Image, List, Video

    kinds = {"images": Image(), "audios": Audio(), "videos": Video()}
    features = Features.from_arrow_schema(schema)
    features |= {name: List(kinds[name]) for name in media}
    return {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
