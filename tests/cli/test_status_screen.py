"""What the status command learns of a fleet, a rollout and the trainer, and how it says so."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import grpc
import pytest
from rich.console import Console
from typer.testing import CliRunner

from anyloop.cli.app import app
from anyloop.cli.checkpoint_state import checkpoint_state
from anyloop.cli.journal import Journal
from anyloop.cli.status_screen import ago, screen
from anyloop.config import Settings
from anyloop.log import open_log
from anyloop.registry import Announcements, announce
from protos.anyloop.v1 import control_pb2, control_pb2_grpc

OLD, NEW, NEXT = "policy-000001", "policy-000002", "policy-000003"
NOW = 1_000_000.0


def replica(address: str, version: str = OLD, **changes: Any) -> dict[str, Any]:
    one = {"address": address, "reachable": True, "serving_version": version, "digest": "abcdef0123456789"}
    return {**one, "requests_running": 2, "requests_waiting": 1, "draining": False, "swap_failure": "", **changes}


def told(version: str, state: str, seconds: float, by: str = "gate", reason: str = "") -> dict[str, Any]:
    return {"version": version, "state": state, "by": by, "reason": reason, "unix_ms": int(1000 * (NOW - seconds))}


def report(*policy: dict[str, Any], **changes: Any) -> dict[str, Any]:
    log: dict[str, Any] = {"url": "kafka://broker:9092", "error": "", "events": {}, "lag": {}, "dead_letters": {}}
    return {
        "gateway": {"url": "http://gateway:8080", "ready": True},
        "fleets": {"policy": list(policy)},
        "decoders": {"address": "decoders:50053", "serving": True},
        "log": {**log, "checkpoints": {"policy": changes.pop("checkpoints")} if "checkpoints" in changes else {}},
        "outbox_bytes": {},
        "last_round": None,
        "trainer": {"rounds": 0, "under_way": None, "failure": "", "expected": False},
        **changes,
    }


def lines(document: dict[str, Any]) -> list[str]:
    out = StringIO()
    Console(file=out, width=160, color_system=None).print(screen(document, NOW))
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


def test_one_replica_is_one_line_with_its_version_and_digest() -> None:
    assert "policy serving policy-000001 abcdef01 2 running, 1 waiting" in lines(report(replica("a:1")))


def test_a_mixed_fleet_is_told_with_shares_and_each_replica() -> None:
    shown = lines(report(replica("a:1"), replica("b:1"), replica("c:1", NEW)))
    assert "policy mixed policy-000001 on 2, policy-000002 on 1 of 3 replicas 6 running, 3 waiting" in shown
    assert "c:1 serving policy-000002 abcdef01 2 running, 1 waiting" in shown


def test_replicas_that_are_away_drain_or_refused_weights_stand_out() -> None:
    away = {"address": "c:1", "reachable": False}
    refused = replica("b:1", swap_failure="policy-000002: model.safetensors is truncated")
    shown = lines(report(replica("a:1", draining=True), refused, away))
    assert any(line.startswith("policy 1 of 3 away") for line in shown)
    assert "c:1 no answer" in shown
    assert any(line.startswith("a:1 draining") for line in shown)
    assert "policy-000002: model.safetensors is truncated" in shown


def test_of_a_large_fleet_only_those_unlike_the_rest_are_listed() -> None:
    fleet = [replica(f"r{index}:1") for index in range(1000)]
    fleet[500] = replica("r500:1", NEW)
    shown = lines(report(*fleet))
    assert [line for line in shown if line.startswith("r")] == [
        "r500:1 serving policy-000002 abcdef01 2 running, 1 waiting"
    ]


def test_a_fleet_that_is_away_has_no_share() -> None:
    assert "policy no answer a:1" in lines(report({"address": "a:1", "reachable": False}))


def test_decisions_rollouts_and_candidates_say_who_when_and_where_they_stand() -> None:
    shown = lines(
        report(
            replica("a:1"),
            replica("b:1", NEXT),
            checkpoints={
                "serving": told(OLD, "promoted", 7200, by="anna@host", reason="by hand"),
                "decision": told(NEW, "rejected", 300, reason="worse on images"),
                "candidates": ["policy-000004", "policy-000005"],
                "rollout": told(NEXT, "approved", 90),
            },
        )
    )
    assert "policy promoted 2 h ago policy-000001 by anna@host: by hand" in shown
    assert "last decision 5 min ago rejected policy-000002 by gate: worse on images" in shown
    assert "rollout under way policy-000003 serves on 1 of 2 replicas, approved 90 s ago" in shown
    assert "candidate waits policy-000005 for the gate, and 1 older" in shown


def test_the_trainers_round_and_its_last_failure() -> None:
    trainer = {"rounds": 3, "under_way": {"round": 4, "ended": ["critic", "examples"]}, "failure": "", "expected": True}
    last = {"round": 3, "outcome": "promoted", "seconds": {"critic": 1.5, "policy": 2.5}}
    shown = lines(report(trainer=trainer, last_round=last))
    assert "trainer round 4 so far: critic, examples" in shown
    assert "last round promoted round 3, 4 s" in shown
    failed = {"rounds": 0, "under_way": None, "failure": "the disk is full", "expected": True}
    assert lines(report(trainer=failed))[-2:] == [
        "trainer waits for enough feedback",
        "its last try failed the disk is full",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-3, "0 s ago"),
        (59, "59 s ago"),
        (119, "119 s ago"),
        (120, "2 min ago"),
        (7200, "2 h ago"),
        (200_000, "2 d ago"),
    ],
)
def test_ages_are_in_the_unit_that_a_person_would_use(seconds: float, said: str) -> None:
    assert ago(seconds) == said


def test_the_log_tells_what_serves_what_waits_and_what_is_rolled_out(tmp_path: Path) -> None:
    with open_log(f"sqlite://{tmp_path}/log.db") as log:
        log.ensure_topics()
        announcements = Announcements(log)
        announce(log, "policy", OLD, "promoted", decided_by="base")
        announce(log, "policy", NEW, "candidate")
        announce(log, "policy", NEW, "rejected", decided_by="gate", reason="worse")
        announce(log, "policy", NEXT, "candidate")
        state = checkpoint_state(announcements, "policy")
        assert state["serving"]["version"] == OLD
        assert (state["decision"]["version"], state["decision"]["reason"]) == (NEW, "worse")
        assert (state["candidates"], state["rollout"]) == ([NEXT], None)
        announce(log, "policy", NEXT, "approved", decided_by="gate")
        state = checkpoint_state(announcements, "policy")
        assert (state["candidates"], state["rollout"]["version"]) == ([], NEXT)
        announce(log, "policy", NEXT, "promoted", decided_by="rollout/default/policy")
        state = checkpoint_state(announcements, "policy")
        assert (state["serving"]["by"], state["rollout"]) == ("rollout/default/policy", None)
        assert checkpoint_state(announcements, "critique")["serving"] is None


def test_the_journal_tells_the_round_that_has_not_ended(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    assert Journal(path).under_way() is None

    def write(*records: dict[str, Any]) -> None:
        with path.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    write({"event": "phase", "round": 1, "phase": "critic"}, {"event": "phase", "round": 1, "phase": "policy"})
    assert Journal(path).under_way() == (1, ["critic", "policy"])
    write({"event": "round", "round": 1, "outcome": "promoted"})
    assert Journal(path).under_way() is None
    write({"event": "phase", "round": 2, "phase": "critic"}, {"event": "failure", "reason": "the disk is full"})
    assert Journal(path).under_way() is None
    assert Journal(path).trouble() == "the disk is full"
    write({"event": "round", "round": 2, "outcome": "rejected"})
    assert Journal(path).trouble() == ""


class Control(control_pb2_grpc.ControlServiceServicer):
    def __init__(self, version: str) -> None:
        self.version = version

    def GetStatus(self, request: Any, context: Any) -> control_pb2.ReplicaStatus:
        weights = [control_pb2.WeightsInfo(version=self.version, digest="abc", serving=True)]
        return control_pb2.ReplicaStatus(model_name="policy", serving_version=self.version, weights=weights)


@pytest.fixture
def two_replicas() -> Iterator[str]:
    """The control target of two real servers with a third that is away."""
    servers, ports = [], []
    for version in (OLD, NEW):
        server = grpc.server(ThreadPoolExecutor(2))
        control_pb2_grpc.add_ControlServiceServicer_to_server(Control(version), server)
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        server.start()
        servers.append(server)
    yield "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in (*ports, 9))
    for server in servers:
        server.stop(0)


def test_every_replica_behind_the_target_is_asked(
    two_replicas: str, home: Path, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYLOOP_POLICY_CONTROL_TARGET", two_replicas)
    found = json.loads(runner.invoke(app, ["status", "--url", "http://127.0.0.1:9", "--json"]).stdout)
    assert [one.get("serving_version") for one in found["fleets"]["policy"]] == [OLD, NEW, None]
    assert found["replicas"]["policy"]["serving_version"] == OLD, "as before there were several"


def test_certificates_that_cannot_be_used_end_the_command_with_the_reason(
    home: Path, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYLOOP_TLS_CERT", str(home / "tls.crt"))
    assert Settings().tls_cert
    result = runner.invoke(app, ["status", "--url", "http://127.0.0.1:9"])
    assert result.exit_code != 0
    assert "ANYLOOP_TLS_KEY" in str(result.exception) + result.stderr
