"""The records of a folder, whatever files hold them: JSON Lines, JSON, Parquet, or Arrow as `datasets` saves it.

Media stay as they stand in the files (bytes, paths, arrays of samples): nothing is decoded here, so that neither a
decoder nor the `datasets` package has to be installed.
"""

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_EXPECTED = {  # files that are no records and need no word: media that records name, and papers about the data
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".wav", ".flac", ".ogg", ".mp3", ".m4a", ".mp4", ".webm", ".mov"),
    *(".md", ".txt", ".pdf", ".gitattributes", ".lock", ".py", ".toml"),
}
_ROWS_AT_ONCE = 16  # of a Parquet file: a row may hold two videos


class SourceError(ValueError):
    """The folder or a file in it cannot be read. The message says what to do."""


@dataclass(frozen=True)
class Unreadable:
    """Stands in a file's records where one could not be parsed."""

    reason: str


Row = dict[str, Any] | Unreadable


class RecordFile(ABC):
    """`name` is the path within the folder, with slashes; it and a record's index name the record."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def stamp(self) -> str:
        """Other when the file is another one, as far as its size and time tell."""
        try:
            status = self.path.stat()
        except OSError:
            return ""
        return f"{status.st_size} {status.st_mtime_ns}"

    def _bytes(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise SourceError(f"{self.name} cannot be opened ({error.strerror}): let this user read it") from error

    @abstractmethod
    def count(self) -> int:
        """How many records there are. Raises SourceError."""

    @abstractmethod
    def rows(self, begin: int = 0) -> Iterator[Row]:
        """The records from index `begin` on. Raises SourceError where the file is broken."""


@dataclass
class Found:
    """What a folder holds. `unread` counts, by suffix, what is neither records nor media."""

    files: list[RecordFile] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)


def find_records(place: Path) -> Found:
    """All files with records in a folder, in the order of their names; or the one file that `place` is.

    Raises SourceError when there are none.
    """
    found = Found()
    if place.is_file():
        paths, root = [place], place.parent
    elif place.is_dir():
        paths, root = sorted(path for path in place.rglob("*") if path.is_file()), place
    else:
        raise SourceError(f"{place} is not there: name the folder that holds the data")
    saved = {path.parent: _saved_files(path) for path in paths if path.name == "state.json"}
    for path in paths:
        name = path.relative_to(root).as_posix()
        hidden = any(part.startswith(".") for part in Path(name).parts)
        if hidden or path.name in _DESCRIPTIONS or path.suffix.lower() in _EXPECTED:
            continue
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            found.unread[path.suffix or path.name] += 1
        elif path.name in saved.get(path.parent, {path.name}):  # others beside a saved set are its caches
            found.files.append(reader(path, name))
    if not found.files:
        others = ", ".join(f"{count} {suffix}" for suffix, count in sorted(found.unread.items()))
        raise SourceError(
            f"{place} holds no .jsonl, .json, .parquet or .arrow file"
            + (f", only {others}: unpack archives first" if others else "")
        )
    return found


def _saved_files(state: Path) -> set[str]:
    """The data files of a set that `save_to_disk` wrote."""
    try:
        return {str(one["filename"]) for one in json.loads(state.read_text())["_data_files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{state} does not describe a saved data set ({error}): save it again") from error


class JsonLines(RecordFile):
    def count(self) -> int:
        with self._bytes() as file:
            return sum(1 for line in file if line.strip())

    def rows(self, begin: int = 0) -> Iterator[Row]:
        index = 0
        with self._bytes() as file:
            for line in file:
                if not line.strip():
                    continue
                if index >= begin:
                    yield _parsed(line)
                index += 1


class JsonFile(RecordFile):
    """One array of records; a file of that suffix that holds one record per line is read as such."""

    def count(self) -> int:
        return len(self._all())

    def rows(self, begin: int = 0) -> Iterator[Row]:
        for row in self._all()[begin:]:
            yield row if isinstance(row, dict) else Unreadable("not an object with keys")

    def _all(self) -> list[Any]:
        with self._bytes() as file:
            content = file.read()
        try:
            held = json.loads(content)
        except RecursionError as error:
            raise SourceError(f"{self.name} is nested too deeply to be read") from error
        except ValueError as error:
            lines = JsonLines(self.path, self.name)
            if next((isinstance(row, dict) for row in lines.rows()), False):
                return list(lines.rows())
            raise SourceError(f"{self.name} is not JSON ({error})") from error
        if isinstance(held, dict):
            return [held]
        if isinstance(held, list):
            return held
        raise SourceError(f"{self.name} holds neither records nor an array of them")


class ParquetFile(RecordFile):
    def count(self) -> int:
        return int(self._open().metadata.num_rows)

    def rows(self, begin: int = 0) -> Iterator[Row]:
        opened = self._open()
        sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
        first, at = 0, 0
        while first < len(sizes) and at + sizes[first] <= begin:
            at += sizes[first]
            first += 1
        for batch in self._batches(opened, range(first, len(sizes))):
            yield from _of_batch(batch, max(0, begin - at))
            at += batch.num_rows

    def _batches(self, opened: Any, groups: Iterable[int]) -> Iterator[Any]:
        arrow = _arrow()
        try:
            for group in groups:
                yield from opened.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[group])
        except (OSError, ValueError, arrow.ArrowException) as error:
            raise SourceError(f"{self.name} is damaged ({error}): fetch it again") from error

    def _open(self) -> Any:
        parquet = _arrow("parquet")
        try:
            return parquet.ParquetFile(self.path)
        except (OSError, ValueError, _arrow().ArrowException) as error:
            raise SourceError(f"{self.name} is not a whole Parquet file ({error}): fetch it again") from error


class ArrowFile(RecordFile):
    """A stream of record batches, as `Dataset.save_to_disk` writes, or the random-access format."""

    def count(self) -> int:
        return sum(batch.num_rows for batch in self._batches())

    def rows(self, begin: int = 0) -> Iterator[Row]:
        at = 0
        for batch in self._batches():
            yield from _of_batch(batch, max(0, begin - at))
            at += batch.num_rows

    def _batches(self) -> Iterator[Any]:
        ipc, arrow = _arrow("ipc"), _arrow()
        try:
            with arrow.memory_map(str(self.path)) as file:
                try:
                    yield from ipc.open_stream(file)
                except arrow.ArrowInvalid:
                    file.seek(0)
                    opened = ipc.open_file(file)
                    yield from (opened.get_batch(index) for index in range(opened.num_record_batches))
        except (OSError, ValueError, arrow.ArrowException) as error:
            raise SourceError(f"{self.name} is not a whole Arrow file ({error}): save it again") from error


_READERS: dict[str, type[RecordFile]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": JsonFile,
    ".parquet": ParquetFile,
    ".arrow": ArrowFile,
}


def _parsed(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        return Unreadable(f"not JSON: {error}")
    except RecursionError:
        return Unreadable("nested too deeply")
    return row if isinstance(row, dict) else Unreadable("not an object with keys")


def _of_batch(batch: Any, begin: int) -> Iterator[Row]:
    names = batch.schema.names
    for index in range(begin, batch.num_rows):
        try:
            row: Row = {name: _python(batch.column(at)[index]) for at, name in enumerate(names)}
        except (ValueError, OverflowError, _arrow().ArrowException) as error:  # text that is not UTF-8, say
            row = Unreadable(f"a value cannot be decoded: {error}")
        yield row


def _python(scalar: Any) -> Any:
    """A value of Arrow as one of Python; lists of numbers as arrays: ten seconds of sound are half a million."""
    types = _arrow().types
    if not scalar.is_valid:
        return None
    if types.is_struct(scalar.type):
        return {field.name: _python(scalar[field.name]) for field in scalar.type}
    if types.is_list(scalar.type) or types.is_large_list(scalar.type):
        if types.is_floating(scalar.type.value_type):
            return scalar.values.to_numpy(zero_copy_only=False)
        return [_python(one) for one in scalar.values]
    return scalar.as_py()


def _arrow(part: str = "") -> Any:
    """pyarrow, imported when a file needs it. Raises SourceError without it."""
    import importlib

    try:
        return importlib.import_module("pyarrow" + (f".{part}" if part else ""))
    except ImportError as error:
        raise SourceError("Parquet and Arrow files need pyarrow: pip install 'anyloop[data]'") from error
