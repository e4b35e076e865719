import json
import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anyloop.cli.app import app
from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.log_choice import choose_log, separate_log
from anyloop.cli.runfile import log_url
from anyloop.config import Settings


def _settings(home: Path, log_url: str = "") -> Settings:
    return Settings(_env_file=None, home=home, log_url=log_url)  # type: ignore[call-arg]


def test_without_a_choice_the_log_is_embedded(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    assert choose_log(settings, None, 0) is False
    assert settings.log_url == ""


def test_kafka_brings_a_broker_and_its_address(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    assert choose_log(settings, "kafka", 1000) is True
    assert settings.log_url == "kafka://127.0.0.1:10092"


@pytest.mark.parametrize("kind", [None, "kafka"])
def test_a_cluster_that_is_set_is_used_and_no_broker_is_brought(kind: str | None, tmp_path: Path) -> None:
    settings = _settings(tmp_path, "kafka://cluster:9092/mine.")
    assert choose_log(settings, kind, 0) is False
    assert settings.log_url == "kafka://cluster:9092/mine."


@pytest.mark.parametrize(("url", "kind"), [("kafka://cluster:9092", "sqlite"), ("sqlite:///tmp/log.db", "kafka")])
def test_a_choice_that_contradicts_the_environment_is_refused(url: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=f"--log {kind}, but ANYLOOP_LOG_URL={url}: unset one of them"):
        choose_log(_settings(tmp_path, url), kind, 0)


def test_a_home_keeps_the_log_it_began_with(tmp_path: Path) -> None:
    embedded, broker = tmp_path / "a", tmp_path / "b"
    embedded.mkdir()
    (embedded / "log.db").touch()
    (broker / "kafka").mkdir(parents=True)
    with pytest.raises(CommandError, match="go on without --log kafka"):
        choose_log(_settings(embedded), "kafka", 0)
    with pytest.raises(CommandError, match="go on with --log kafka"):
        choose_log(_settings(broker), None, 0)
    assert choose_log(_settings(embedded), None, 0) is False
    assert choose_log(_settings(broker), "kafka", 0) is True
    assert choose_log(_settings(broker), "sqlite", 0) is False


def test_other_commands_find_the_log_of_a_home(tmp_path: Path) -> None:
    embedded, broker = tmp_path / "a", tmp_path / "b"
    assert log_url(_settings(embedded)) == _settings(embedded).effective_log_url
    assert log_url(_settings(embedded, "kafka://cluster/x.")) == "kafka://cluster/x."
    (broker / "kafka").mkdir(parents=True)
    assert log_url(_settings(broker)) == "kafka://127.0.0.1:9092"
    running = {"pid": os.getpid(), "environment": {"ANYLOOP_LOG_URL": "kafka://127.0.0.1:10092"}}
    (broker / "up.json").write_text(json.dumps(running))
    assert log_url(_settings(broker)) == "kafka://127.0.0.1:10092"


def test_credentials_for_another_cluster_do_not_meet_the_local_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYLOOP_KAFKA_SECURITY_PROTOCOL", "SSL")
    with pytest.raises(CommandError, match="SECURITY_PROTOCOL=SSL: unset it, or set ANYLOOP_LOG_URL"):
        choose_log(_settings(tmp_path), "kafka", 0)


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("kafka://one:1,two:2", r"kafka://one:1,two:2/demo-\d{8}-\d{6}\."),
        ("kafka://one:1/team.", r"kafka://one:1/team\.demo-\d{8}-\d{6}\."),
        ("sqlite:///var/log.db", r"sqlite:///var/log\.db"),
    ],
)
def test_a_demo_on_a_shared_cluster_has_a_prefix_of_its_own(url: str, pattern: str, tmp_path: Path) -> None:
    settings = _settings(tmp_path, url)
    separate_log(settings)
    assert re.fullmatch(pattern, settings.log_url)


def test_without_java_the_command_ends_before_anything_starts(
    home: Path, runner: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("ANYLOOP_LOG_URL", raising=False)
    result = runner.invoke(app, ["up", "--log", "kafka"])
    assert result.exit_code == ExitCode.FAILED
    assert "needs Java 17 or later" in result.stderr
    assert not home.exists()
