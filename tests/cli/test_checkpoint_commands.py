import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anyloop import audit
from anyloop.cli.app import app
from anyloop.cli.exits import ExitCode
from anyloop.config import Settings
from anyloop.log import LogError, open_log
from anyloop.registry import Registry, announce, serving_version
from tests.models.random_omni import build_random_omni


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_omni(tmp_path_factory.mktemp("model"))


@pytest.fixture
def versions(home: Path, model: Path) -> list[str]:
    """Base, one candidate promoted, one rejected: as the trainer and the gate leave them."""
    settings = Settings()
    home.mkdir()
    registry = Registry(settings.effective_registry_dir)
    base = registry.import_base("policy", model)

    def write(folder: Path) -> None:
        for name in base.files:
            (folder / name).write_bytes((model / name).read_bytes())

    names = [base.version]
    with open_log(settings.effective_log_url) as log:
        log.ensure_topics()
        announce(log, "policy", base.version, "promoted", reason="the base", decided_by="policy")
        for state in ("promoted", "rejected"):
            manifest = registry.publish("policy", write, parent=base.version, weights_digest=base.weights_digest)
            announce(log, "policy", manifest.version, "candidate")
            announce(log, "policy", manifest.version, state, reason="as measured", decided_by="gate")
            names.append(manifest.version)
    return names


def _serving() -> str | None:
    with open_log(Settings().effective_log_url) as log:
        return serving_version(log, "policy")


def test_list_says_state_and_what_serves(versions: list[str], runner: CliRunner) -> None:
    rows = json.loads(runner.invoke(app, ["checkpoints", "list", "--json"]).stdout)
    assert [(row["version"], row["state"], row["serving"]) for row in rows] == [
        (versions[0], "promoted", False),
        (versions[1], "promoted", True),
        (versions[2], "rejected", False),
    ]
    assert rows[2]["reason"] == "as measured"


def test_show_prints_the_manifest(versions: list[str], runner: CliRunner) -> None:
    manifest = json.loads(runner.invoke(app, ["checkpoints", "show", versions[1], "--json"]).stdout)
    assert manifest["parent"] == versions[0]
    assert "model.safetensors" in manifest["files"]


def test_show_prints_the_manifest_also_while_the_log_is_away(
    versions: list[str], runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: str) -> None:
        raise LogError("no broker answers", retriable=True)

    monkeypatch.setattr("anyloop.log.open_log", away)
    result = runner.invoke(app, ["checkpoints", "show", versions[1], "--json"])
    assert result.exit_code == 0
    assert (json.loads(result.stdout)["parent"], json.loads(result.stdout)["announced"]) == (versions[0], None)
    assert "no broker answers" in result.stderr


def test_rollback_goes_to_the_version_that_served_before(versions: list[str], runner: CliRunner) -> None:
    result = runner.invoke(app, ["checkpoints", "rollback", "--wait", "0", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["version"] == versions[0]
    assert _serving() == versions[0]


def test_rollback_without_a_past_is_refused(home: Path, runner: CliRunner) -> None:
    result = runner.invoke(app, ["checkpoints", "rollback", "--wait", "0"])
    assert result.exit_code == ExitCode.NOT_FOUND


def test_promote_puts_even_a_rejected_version_in_service(versions: list[str], runner: CliRunner) -> None:
    assert runner.invoke(app, ["checkpoints", "promote", versions[2], "--wait", "0"]).exit_code == 0
    assert _serving() == versions[2]


def test_promote_refuses_a_corrupt_version_and_changes_nothing(versions: list[str], runner: CliRunner) -> None:
    weights = Registry(Settings().effective_registry_dir).path(versions[2]) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    result = runner.invoke(app, ["checkpoints", "promote", versions[2], "--wait", "0"])
    assert result.exit_code == ExitCode.REFUSED
    assert "model.safetensors" in result.stderr
    assert _serving() == versions[1]


def test_promote_says_when_no_replica_takes_it_up(versions: list[str], runner: CliRunner) -> None:
    env = {"ANYLOOP_POLICY_CONTROL_TARGET": "127.0.0.1:9"}
    result = runner.invoke(app, ["checkpoints", "promote", versions[0], "--wait", "0.5"], env=env)
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "no replica serves it" in " ".join(result.stderr.split())


def test_verify_names_the_broken_file_and_fails(versions: list[str], runner: CliRunner) -> None:
    assert runner.invoke(app, ["checkpoints", "verify", "--all"]).exit_code == 0
    (Registry(Settings().effective_registry_dir).path(versions[1]) / "config.json").unlink()
    result = runner.invoke(app, ["checkpoints", "verify", "--all", "--json"])
    assert result.exit_code == ExitCode.FAILED
    verdicts = json.loads(result.stdout)
    assert verdicts[versions[0]] == "ok"
    assert "config.json is missing" in verdicts[versions[1]]


def test_a_version_without_a_readable_manifest_is_named_and_hides_no_other(
    versions: list[str], home: Path, runner: CliRunner
) -> None:
    (home / "registry" / versions[-1] / "manifest.json").write_text("{")
    listed = runner.invoke(app, ["checkpoints", "list", "--json"])
    assert listed.exit_code == 0
    assert versions[-1] not in [row["version"] for row in json.loads(listed.stdout)]
    assert "damaged" in listed.stderr
    checked = runner.invoke(app, ["checkpoints", "verify", "--all", "--json"])
    assert checked.exit_code == ExitCode.FAILED
    assert "not JSON" in json.loads(checked.stdout)[versions[-1]]


def test_an_unknown_version_is_not_found(versions: list[str], runner: CliRunner) -> None:
    assert runner.invoke(app, ["checkpoints", "show", "policy-999999"]).exit_code == ExitCode.NOT_FOUND
    assert runner.invoke(app, ["checkpoints", "promote", "policy-999999"]).exit_code == ExitCode.NOT_FOUND


def _trail() -> list[tuple[str, str, str]]:
    with open_log(Settings().effective_log_url) as log:
        return [(one.action, one.subject, one.outcome) for _, one in audit.audit_events(log)]


def test_who_promotes_and_who_rolls_back_is_in_the_audit_trail(
    versions: list[str], runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "operator", lambda: "anna@ops-1")
    before = len(_trail())
    assert runner.invoke(app, ["checkpoints", "promote", versions[2], "--wait", "0"]).exit_code == 0
    assert runner.invoke(app, ["checkpoints", "rollback", "--reason", "too loud", "--wait", "0"]).exit_code == 0
    assert _trail()[before:] == [("promote", versions[2], "done"), ("rollback", versions[1], "done")]
    lines = runner.invoke(app, ["audit", "--json"]).stdout.splitlines()
    last = json.loads(lines[-1])
    assert (last["actor"], last["reason"], last["details"]["lineage"]) == ("anna@ops-1", "too loud", "policy")


def test_a_refused_promotion_is_in_the_audit_trail(versions: list[str], runner: CliRunner) -> None:
    (Registry(Settings().effective_registry_dir).path(versions[2]) / "config.json").unlink()
    assert runner.invoke(app, ["checkpoints", "promote", versions[2], "--wait", "0"]).exit_code == ExitCode.REFUSED
    assert _trail()[-1] == ("promote", versions[2], "refused")


def test_an_approved_version_is_said_to_be_and_one_that_was_overtaken_too(
    versions: list[str], model: Path, runner: CliRunner
) -> None:
    with open_log(Settings().effective_log_url) as log:
        for version in versions[1:]:
            announce(log, "policy", version, "approved", reason="as measured", decided_by="gate")
    rows = json.loads(runner.invoke(app, ["checkpoints", "list", "--json"]).stdout)
    assert [row["state"] for row in rows] == ["promoted", "overtaken", "approved"]
    shown = json.loads(runner.invoke(app, ["checkpoints", "show", versions[2], "--json"]).stdout)
    assert [one["state"] for one in shown["announced"]] == ["candidate", "rejected", "approved"]
    assert shown["announced"][-1]["decided_by"] == "gate"
