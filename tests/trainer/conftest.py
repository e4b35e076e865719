from pathlib import Path

import pytest

from anyloop.sequence import Sequencer
from tests.models.random_omni import build_random_omni


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model directory; read only."""
    return build_random_omni(tmp_path_factory.mktemp("omni"))


@pytest.fixture(scope="session")
def sequencer(checkpoint: Path) -> Sequencer:
    return Sequencer.from_pretrained(checkpoint)
