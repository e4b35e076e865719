import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from anyloop import __version__
from anyloop.cli.app import app
from anyloop.cli.exits import CommandError, ExitCode, as_command_error
from anyloop.cli.feedback import ratings
from anyloop.log import LogError
from anyloop.log.kafka_settings import KafkaSettings

_COMMANDS = [
    ["up"],
    ["demo"],
    ["generate"],
    ["feedback"],
    ["eval"],
    ["status"],
    ["replay"],
    ["log", "read"],
    ["log", "tail"],
    ["kafka"],
    ["topics", "list"],
    ["topics", "apply"],
    ["checkpoints", "list"],
    ["checkpoints", "show"],
    ["checkpoints", "diff"],
    ["checkpoints", "verify"],
    ["checkpoints", "promote"],
    ["checkpoints", "rollback"],
]


@pytest.mark.parametrize("command", _COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command: list[str], runner: CliRunner) -> None:
    result = runner.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_the_version_is_printed_without_a_command(runner: CliRunner) -> None:
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"{__version__}\n")


def test_an_unknown_command_is_a_usage_error(runner: CliRunner) -> None:
    assert runner.invoke(app, ["fly"]).exit_code == ExitCode.USAGE


def test_status_without_a_gateway_is_unreachable_and_still_reports(home: Path, runner: CliRunner) -> None:
    result = runner.invoke(app, ["status", "--url", "http://127.0.0.1:9", "--json"])
    assert result.exit_code == ExitCode.UNREACHABLE
    report = json.loads(result.stdout)
    assert report["gateway"] == {"url": "http://127.0.0.1:9", "ready": False}
    assert report["replicas"] == {"policy": None, "critique": None}
    assert not home.exists(), "asking for the status creates nothing"


def test_generate_without_a_gateway_says_what_to_do(home: Path, runner: CliRunner) -> None:
    result = runner.invoke(app, ["generate", "hello", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "is `anyloop up` running" in " ".join(result.stderr.split())


def test_up_without_a_checkpoint_says_how_to_get_one(home: Path, tmp_path: Path, runner: CliRunner) -> None:
    result = runner.invoke(app, ["up"], env={"ANYLOOP_MODEL_DIR": str(tmp_path / "none")})
    assert result.exit_code == ExitCode.FAILED
    assert "make tiny-omni" in result.stderr


def test_empty_feedback_is_refused_before_it_is_sent(home: Path, runner: CliRunner) -> None:
    result = runner.invoke(app, ["feedback", "chatcmpl-1", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == ExitCode.USAGE
    assert "Nothing said" in result.stderr


def test_one_bare_rating_is_for_the_whole() -> None:
    assert ratings(["0.7"]) == 0.7


def test_ratings_by_dimension_keep_their_names() -> None:
    assert ratings(["colour=0.2", "shape=1", "0.5"]) == {"colour": 0.2, "shape": 1.0, "overall": 0.5}


def test_no_rating_is_none() -> None:
    assert ratings([]) is None


@pytest.mark.parametrize("text", ["much", "colour=", "1.5", "colour=-1", "nan"])
def test_a_rating_that_is_no_number_from_0_to_1_is_refused(text: str) -> None:
    with pytest.raises(CommandError):
        ratings([text])


def test_the_program_starts_without_importing_torch() -> None:
    program = "import sys, anyloop.cli.app; print('torch' in sys.modules, 'transformers' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "False"]


def test_a_wrong_setting_ends_a_command_with_its_name(
    home: Path, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYLOOP_LOG_PARTITIONS", "none")
    result = runner.invoke(app, ["topics", "list"])
    assert result.exit_code == ExitCode.USAGE
    assert "ANYLOOP_LOG_PARTITIONS: Input should be a valid integer" in result.stderr


def test_errors_of_the_log_and_of_settings_become_a_sentence_and_an_exit_code() -> None:
    away, refused = LogError("the broker is away", retriable=True), LogError("wrong password")
    for error, code in ((away, ExitCode.UNREACHABLE), (refused, ExitCode.REFUSED)):
        ended = as_command_error(error)
        assert ended is not None
        assert (str(ended), ended.code) == (str(error), code)
    with pytest.raises(ValidationError) as caught:
        KafkaSettings(_env_file=None, sasl_username="ann")  # type: ignore[call-arg]
    ended = as_command_error(caught.value)
    assert ended is not None
    assert ended.code == ExitCode.USAGE
    assert str(ended).startswith("ANYLOOP_KAFKA_SASL_USERNAME is set but")
    assert as_command_error(KeyError("a bug is no sentence")) is None
