from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from anyloop.datasets.align_anything.importer import Choice, Importer
from anyloop.datasets.align_anything.keys import KeyTable
from anyloop.datasets.media_values import MediaReader
from anyloop.datasets.progress import Progress
from anyloop.datasets.report import Report
from anyloop.datasets.sources import find_records
from anyloop.datasets.tokens import ContentEncoder
from anyloop.log import EventLog, open_log
from anyloop.media.limits import MediaLimits
from anyloop.media.store import MediaStore
from tests.models.random_omni import build_random_omni

RunImport = Callable[..., Report]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_omni(tmp_path_factory.mktemp("omni"))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with open_log(f"sqlite:///{tmp_path}/log.db") as opened:
        opened.ensure_topics()
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> MediaStore:
    return MediaStore(f"file://{tmp_path}/media")


@pytest.fixture
def run_import(tmp_path: Path, model: Path, log: EventLog, store: MediaStore) -> RunImport:
    """One run of an import as the command does it: new objects, the same log, store and folder of progress."""

    def run(
        folder: Path,
        *,
        keys: Path | None = None,
        capacity: int = 384,
        into: Any = None,
        source: str = "",
        model_dir: Path = model,
        dry_run: bool = False,
        **choice: Any,
    ) -> Report:
        target = into or log
        importer = Importer(
            KeyTable.load(keys),
            lambda file: MediaReader([file.path.parent, folder]),
            ContentEncoder(model_dir, capacity, MediaLimits()),
            Choice(**choice),
            None if dry_run else target,
            None if dry_run else store,
        )
        importer.know(target)
        place = tmp_path / "progress"
        place.mkdir(exist_ok=True)
        files = find_records(folder).files
        stamps = {file.name: file.stamp() for file in files}
        what = {"folder": str(folder), "other": source}
        progress = Progress(place, what, resume=not dry_run, stamps=stamps, known=importer.known)
        return importer.run(files, progress)

    return run
