from collections.abc import Iterator
from pathlib import Path

import pytest

from anyloop.sequence import Sequencer
from tests.models.random_omni import build_random_omni
from tests.trainer.loop import Loop, open_sqlite_loop


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model directory; read only."""
    return build_random_omni(tmp_path_factory.mktemp("omni"))


@pytest.fixture(scope="session")
def sequencer(checkpoint: Path) -> Sequencer:
    return Sequencer.from_pretrained(checkpoint)


@pytest.fixture
def loop(tmp_path: Path, checkpoint: Path, sequencer: Sequencer) -> Iterator[Loop]:
    with open_sqlite_loop(tmp_path, checkpoint, sequencer) as opened:
        yield opened
