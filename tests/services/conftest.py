"""Model directories of random weights, built once."""

from pathlib import Path

import pytest

from tests.models.random_omni import build_random_omni


@pytest.fixture(scope="session")
def random_omni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_omni(tmp_path_factory.mktemp("omni") / "base")


@pytest.fixture(scope="session")
def other_omni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shapes, other weights."""
    return build_random_omni(tmp_path_factory.mktemp("omni") / "other", seed=1)
