from pathlib import Path

import pytest
from typer.testing import CliRunner


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own, by the environment, as every process of a machine finds it."""
    monkeypatch.setenv("ANYLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ANYLOOP_MODEL_DIR", raising=False)
    return tmp_path / "home"


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()
