from collections.abc import Iterator
from pathlib import Path

import pytest

from anyloop.log import open_log
from anyloop.sequence import Sequencer
from tests.models.random_omni import build_random_omni
from tests.trainer.loop import Loop, open_loop


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model directory; read only."""
    return build_random_omni(tmp_path_factory.mktemp("omni"))


@pytest.fixture(scope="session")
def sequencer(checkpoint: Path) -> Sequencer:
    return Sequencer.from_pretrained(checkpoint)


@pytest.fixture
def loop(tmp_path: Path, checkpoint: Path, sequencer: Sequencer) -> Iterator[Loop]:
    """On the embedded log."""
    with open_log(f"sqlite:///{tmp_path}/log.db") as log:
        log.ensure_topics()
        with open_loop(tmp_path, checkpoint, sequencer, log) as opened:
            yield opened
