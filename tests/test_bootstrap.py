"""`python -m anyloop.bootstrap`: topics, base checkpoints and the model, once and again."""

import shutil
from pathlib import Path

import pytest

from anyloop import bootstrap
from anyloop.bootstrap import BootstrapError, fetch_model, main, make_topics
from anyloop.config import TINY_OMNI, Settings
from anyloop.log import TOPICS, LogError, open_log


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANYLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(bootstrap, "configure", lambda *_: None)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def small_model(folder: Path) -> Path:
    """A model directory that is quick to copy: the registry wants a config and safetensors, wherever it runs."""
    folder.mkdir(parents=True)
    shutil.copy(TINY_OMNI / "config.json", folder)
    shutil.copy(next(TINY_OMNI.glob("*.safetensors")), folder)
    (folder / "codec").mkdir()
    (folder / "codec" / "config.json").write_text("{}")
    return folder


def test_a_new_installation_gets_topics_and_both_base_checkpoints_and_a_second_run_changes_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYLOOP_MODEL_DIR", str(small_model(tmp_path / "model")))
    assert main(["--wait=1"]) == 0
    found = {path.name for path in (home / "registry").iterdir() if not path.name.startswith(".")}
    assert found == {"policy-000000", "critique-000000"}
    with open_log(Settings().effective_log_url) as log:
        assert all(log.end_offsets(spec.name) is not None for spec in TOPICS)
    before = {path: path.stat().st_mtime_ns for path in (home / "registry").rglob("*") if path.is_file()}
    assert main(["--wait=1"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_model_is_copied_with_its_codecs_and_only_once(tmp_path: Path) -> None:
    source, target = small_model(tmp_path / "source"), tmp_path / "volume" / "base"
    fetch_model(f"file://{source}", target)
    assert (target / "codec" / "config.json").read_text() == "{}"
    assert (target / "config.json").read_bytes() == (source / "config.json").read_bytes()
    (source / "config.json").write_text("another")
    fetch_model(f"file://{source}", target)
    assert (target / "config.json").read_text() != "another"
    assert [path.name for path in target.parent.iterdir()] == ["base"]


def test_a_source_without_a_model_and_a_folder_in_the_way_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BootstrapError, match=r"holds no config\.json: model\.source names"):
        fetch_model(f"file://{tmp_path / 'empty'}", tmp_path / "base")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "something").write_text("else")
    with pytest.raises(BootstrapError, match=r"remove it, or set model\.path"):
        fetch_model(f"file://{small_model(tmp_path / 'source')}", tmp_path / "taken")
    assert (tmp_path / "taken" / "something").read_text() == "else"


def test_a_log_that_is_away_is_waited_for_and_given_up_after_the_time(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, tries = [0.0], [0]

    class Away(LogError):
        retriable = True

    def away(url: str) -> object:
        tries[0] += 1
        raise Away("no broker answers")

    def passing(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(bootstrap, "open_log", away)
    with pytest.raises(LogError, match="no broker answers"):
        make_topics(Settings(), 10.0, lambda: now[0], passing)
    assert tries[0] == 6
    assert now[0] == 10.0


def test_topics_that_cannot_become_what_is_asked_end_it_with_code_1(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_topics(Settings(log_partitions=4), 0.0)
    monkeypatch.setenv("ANYLOOP_LOG_PARTITIONS", "8")
    assert main(["--wait=0"]) == 1
    assert "the topics stay as they are" in caplog.text
