import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anyloop.cli.app import app
from anyloop.cli.exits import ExitCode
from anyloop.keyfile import hash_key, only_one_changes, read_keys, write_keys


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "keys.toml"
    monkeypatch.setenv("ANYLOOP_KEYS_FILE", str(path))
    return path


def made(runner: CliRunner, *arguments: str) -> str:
    """The key that the command printed."""
    result = runner.invoke(app, ["keys", *arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout.strip()


def test_a_new_key_is_printed_once_and_its_hash_is_in_the_file(file: Path, runner: CliRunner) -> None:
    key = made(runner, "new", "app", "--max-running", "4", "--expires", "90d")
    assert key.startswith("al-")
    assert key not in file.read_text()
    principal = read_keys(file)["app"]
    assert principal.keys[0].sha256 == hash_key(key)
    assert sorted(principal.roles) == ["feedback", "generate"]
    assert (principal.quotas.requests_per_minute, principal.quotas.max_running) == (600, 4)
    ends = principal.keys[0].not_after
    assert ends is not None
    assert timedelta(days=89) < ends - datetime.now(UTC) < timedelta(days=91)


def test_who_has_a_key_gets_the_next_by_rotation(file: Path, runner: CliRunner) -> None:
    first = made(runner, "new", "app", "--role", "operate")
    again = runner.invoke(app, ["keys", "new", "app"])
    assert again.exit_code == ExitCode.REFUSED
    assert "anyloop keys rotate app" in again.stderr
    second = made(runner, "rotate", "app", "--overlap", "12h")
    principal = read_keys(file)["app"]
    assert [key.sha256 for key in principal.keys] == [hash_key(second), hash_key(first)]
    assert principal.keys[0].not_after is None
    ends = principal.keys[1].not_after
    assert ends is not None
    assert timedelta(hours=11) < ends - datetime.now(UTC) < timedelta(hours=13)
    assert sorted(principal.roles) == ["operate"]


def test_a_rotation_lengthens_no_life_and_drops_what_has_ended(file: Path, runner: CliRunner) -> None:
    made(runner, "new", "app", "--expires", "1h")
    first_end = read_keys(file)["app"].keys[0].not_after
    made(runner, "rotate", "app", "--overlap", "7d")
    assert read_keys(file)["app"].keys[1].not_after == first_end
    made(runner, "rotate", "app", "--overlap", "0m")  # both of them end now
    made(runner, "rotate", "app", "--overlap", "1h")
    assert len(read_keys(file)["app"].keys) == 2


def test_revoking_takes_one_key_or_the_principal(file: Path, runner: CliRunner) -> None:
    made(runner, "new", "root", "--role", "admin")
    made(runner, "new", "app")
    made(runner, "rotate", "app")
    old = read_keys(file)["app"].keys[1]
    made(runner, "revoke", "app", "--key", old.fingerprint)
    assert old not in read_keys(file)["app"].keys
    made(runner, "revoke", "app")
    assert list(read_keys(file)) == ["root"]


def test_the_last_one_is_not_revoked(file: Path, runner: CliRunner) -> None:
    """A gateway would take the empty file for a broken one and go on with the keys it has."""
    made(runner, "new", "app")
    result = runner.invoke(app, ["keys", "revoke", "app"])
    assert result.exit_code == ExitCode.REFUSED
    assert "let somebody else in first" in " ".join(result.stderr.split())
    assert list(read_keys(file)) == ["app"]


@pytest.mark.parametrize("arguments", [["revoke", "nobody"], ["rotate", "nobody"], ["revoke", "app", "--key", "zz"]])
def test_whom_nobody_knows_is_not_found(file: Path, runner: CliRunner, arguments: list[str]) -> None:
    made(runner, "new", "app")
    assert runner.invoke(app, ["keys", *arguments]).exit_code == ExitCode.NOT_FOUND


def test_the_list_says_who_may_what_until_when_and_shows_no_hash(file: Path, runner: CliRunner) -> None:
    made(runner, "new", "app", "--expires", "2d", "--own-feedback")
    made(runner, "new", "old", "--expires", "2020-01-01")
    (app_row, old_row) = json.loads(runner.invoke(app, ["keys", "list", "--json"]).stdout)
    assert (app_row["roles"], app_row["keys"][0]["state"]) == (["feedback", "generate"], "ends soon")
    assert (old_row["keys"][0]["state"], old_row["keys"][0]["not_after"]) == ("expired", "2020-01-01T00:00:00Z")
    shown = runner.invoke(app, ["keys", "list"])
    assert shown.exit_code == 0
    assert "600/min" in shown.stdout
    assert "feedback(own)" in shown.stdout
    assert app_row["feedback_on"] == "own"
    assert "2020-01-01 00:00" in shown.stdout
    assert read_keys(file)["app"].keys[0].sha256 not in shown.stdout


def test_check_takes_what_a_gateway_would_and_warns_of_what_ends(file: Path, runner: CliRunner) -> None:
    made(runner, "new", "app", "--expires", "2d")
    file.chmod(0o666)
    document = json.loads(runner.invoke(app, ["keys", "check", "--json"]).stdout)
    assert document["principals"] == 1
    assert ["ends soon" in one or "can be written by others" in one for one in document["warnings"]] == [True, True]
    file.write_text("[keys")
    broken = runner.invoke(app, ["keys", "check"])
    assert broken.exit_code == ExitCode.FAILED
    assert "cannot read the keys file" in broken.stderr


def test_a_key_that_ends_because_the_next_is_there_is_no_warning(file: Path, runner: CliRunner) -> None:
    made(runner, "new", "app")
    made(runner, "rotate", "app", "--overlap", "24h")
    assert json.loads(runner.invoke(app, ["keys", "check", "--json"]).stdout)["warnings"] == []


def test_check_says_whose_a_key_is(file: Path, runner: CliRunner) -> None:
    key = made(runner, "new", "app")
    assert "app (feedback, generate): valid" in runner.invoke(app, ["keys", "check", "--key"], input=key + "\n").stdout
    assert runner.invoke(app, ["keys", "check", "--key"], input="al-other\n").exit_code == ExitCode.NOT_FOUND
    gone = made(runner, "new", "old", "--expires", "2020-01-01")
    assert runner.invoke(app, ["keys", "check", "--key"], input=gone + "\n").exit_code == ExitCode.REFUSED


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["new", "a b"], "names no principal"),
        (["new", "a", "--expires", "tomorrow"], "is no time"),
        (["new", "a", "--expires", "99999999d"], "is no time"),
        (["new", "a", "--expires", "9999999999999d"], "is no time"),
        (["new", "a", "--expires", "9999-12-31T23:59:59-23:00"], "is no time"),
        (["rotate", "app", "--overlap", ""], "--overlap 24h"),
    ],
)
def test_a_wrong_word_says_the_right_one(file: Path, runner: CliRunner, arguments: list[str], sentence: str) -> None:
    made(runner, "new", "app")
    result = runner.invoke(app, ["keys", *arguments])
    assert result.exit_code == ExitCode.USAGE
    assert sentence in " ".join(result.stderr.split())


def test_two_commands_at_once_undo_nothing(file: Path, runner: CliRunner) -> None:
    """The second waits until the first has written, and reads what it left."""
    made(runner, "new", "app")
    made(runner, "new", "root", "--role", "admin")
    with only_one_changes(file):
        waiting = threading.Thread(target=made, args=(runner, "rotate", "app"))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        found = read_keys(file)
        del found["root"]
        write_keys(file, found)
    waiting.join(10)
    assert list(read_keys(file)) == ["app"], "what was revoked meanwhile stays revoked"
    assert len(read_keys(file)["app"].keys) == 2


def test_without_a_file_it_says_how_to_name_one(home: Path, runner: CliRunner) -> None:
    result = runner.invoke(app, ["keys", "list"])
    assert result.exit_code == ExitCode.USAGE
    assert "--file keys.toml" in result.stderr
