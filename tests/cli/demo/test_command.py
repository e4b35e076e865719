import fcntl
from pathlib import Path

import pytest

from anyloop.cli.demo.command import _fresh_home
from anyloop.cli.exits import CommandError


def test_the_home_of_an_earlier_demo_is_emptied(tmp_path: Path) -> None:
    home = tmp_path / "demo-home"
    home.mkdir()
    (home / "up.lock").touch()
    (home / "log.db").write_text("old")
    assert list(_fresh_home(home).iterdir()) == []


def test_the_home_of_a_running_demo_is_left_alone(tmp_path: Path) -> None:
    home = tmp_path / "demo-home"
    home.mkdir()
    (home / "log.db").write_text("at work")
    with (home / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CommandError, match="Another demo runs"):
            _fresh_home(home)
    assert (home / "log.db").read_text() == "at work"


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CommandError, match="not from a demo"):
        _fresh_home(tmp_path)
    assert (tmp_path / "thesis.tex").exists()
