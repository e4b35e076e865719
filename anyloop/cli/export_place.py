"""Where an export may be written, and how it takes its place: nothing but an earlier export is ever replaced."""

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.datasets.export import writer
from anyloop.datasets.export.places import FOLDER as MEDIA

_MEDIUM = re.compile(r"[0-9a-f]{64}(\.\w+)?")
_CARD = "README.md"


def check_place(to: Path, *, is_file: bool, overwrite: bool) -> None:
    """Raises CommandError where something stands that is not an earlier export, or that is not to be replaced."""
    if to.is_symlink():
        raise CommandError(f"{to} is a link: name what it leads to, {to.resolve()}", ExitCode.REFUSED)
    if not to.exists():
        return
    if not is_file and to.is_dir() and Path.cwd().is_relative_to(to.resolve()):
        raise CommandError(f"--to {to} is the folder you are in: name a new one in it", ExitCode.REFUSED)
    if to.is_dir() == is_file:
        raise CommandError(f"{to} is a {'folder' if is_file else 'file'}: choose another name", ExitCode.REFUSED)
    if not is_file and not any(to.iterdir()):
        return
    if not overwrite:
        raise CommandError(f"{to} is there already: choose another place, or --overwrite", ExitCode.REFUSED)
    if is_file and not _is_export(to):
        raise CommandError(f"{to} is not an export of ours: choose another name", ExitCode.REFUSED)
    if not is_file and (strange := _strange(to)):
        names = ", ".join(strange[:3])
        raise CommandError(f"{to} holds other things than an export ({names}): choose another place", ExitCode.REFUSED)


def _strange(folder: Path) -> list[str]:
    """What in a folder no export has written; the card of one without our mark, too."""
    sets = {f"{name}.{form}" for name in writer.WHAT for form in ("jsonl", "parquet")}
    card = folder / _CARD
    marked = card.is_file() and writer.MARK in card.read_text(encoding="utf-8", errors="replace")
    strange = [] if marked else [_CARD if card.exists() else f"no {_CARD}"]
    for path in sorted(folder.iterdir()):
        if path.name == MEDIA and path.is_dir() and not path.is_symlink():
            strange += [f"{MEDIA}/{one.name}" for one in path.iterdir() if not _MEDIUM.fullmatch(one.name)]
        elif path.name not in sets | {_CARD} or not path.is_file():
            strange.append(path.name)
    return strange


def _is_export(path: Path) -> bool:
    """Whether a file's columns are those of one of our sets. One that is empty is nobody's loss."""
    if path.stat().st_size == 0:
        return True
    names = _parquet_columns(path) if path.suffix.lower() == ".parquet" else _json_columns(path)
    return set(names) in [set(writer.columns_of(one)) for one in writer.WHAT]


def _json_columns(path: Path) -> Iterable[str]:
    with path.open("rb") as file:
        try:
            row = json.loads(file.readline())
        except (ValueError, RecursionError):
            return ()
    return row if isinstance(row, dict) else ()


def _parquet_columns(path: Path) -> Iterable[str]:
    import pyarrow.parquet as parquet

    try:
        names: list[str] = parquet.read_schema(path).names
    except (OSError, ValueError):
        return ()
    return names


@contextmanager
def replacing(to: Path, *, is_file: bool) -> Iterator[Path]:
    """A place beside the target that takes its place when all is written: nobody ever reads half an export, and an
    earlier one is only deleted when the new one stands. Raises CommandError where it cannot be written."""
    to = Path(os.path.abspath(to))
    mark = uuid.uuid4().hex
    temporary, old = to.with_name(f".{to.name}.{mark}"), to.with_name(f".{to.name}.{mark}.old")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        if not is_file:
            temporary.mkdir()
        try:
            yield temporary
            check_place(to, is_file=is_file, overwrite=True)  # somebody may have put something there meanwhile
            _swap(temporary, to, old)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary)
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise CommandError(
            f"the export cannot be written ({error}): choose another place with --to, or make room"
        ) from error


def _swap(temporary: Path, to: Path, old: Path) -> None:
    if not to.is_dir():
        os.replace(temporary, to)
        return
    os.rename(to, old)
    try:
        os.rename(temporary, to)
    except OSError:
        os.rename(old, to)
        raise
    shutil.rmtree(old, ignore_errors=True)
