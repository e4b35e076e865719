"""`anyloop rollouts` against a small HTTP server that keeps PolicyRollouts as an API server does."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes
import pytest
from typer.testing import CliRunner, Result

from anyloop.cli import rollouts
from anyloop.cli.app import app

PREFIX = "/apis/anyloop.dev/v1alpha1"
RUN = {
    "id": "v2@1",
    "version": "v2",
    "stable": "v1",
    "state": "Progressing",
    "startedAt": "2026-01-01T00:00:00Z",
    "step": 1,
    "steps": 3,
    "stepReachedAt": "2026-01-01T00:00:10Z",
}


def rollout(name: str = "policy", *, paused: bool = False, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"paused": paused},
        "status": {"phase": "Idle", "message": "v1 is promoted", "stableVersion": "v1", **status},
    }


class Server:
    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.rollouts: dict[str, dict[str, Any]] = {}
        self.patches: list[dict[str, Any]] = []
        keeper = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                if name == "policyrollouts":
                    self._send(200, {"items": list(keeper.rollouts.values())})
                elif name in keeper.rollouts:
                    self._send(200, keeper.rollouts[name])
                else:
                    self._send(404, {"message": f'policyrollouts.anyloop.dev "{name}" not found'})

            def do_PATCH(self) -> None:
                assert self.headers["Content-Type"] == "application/merge-patch+json"
                keeper.patches.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._send(200, keeper.rollouts[self.path.rpartition("/")[2]])

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def _send(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path / "kubeconfig")
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}],
        "clusters": [{"name": "c", "cluster": {"server": found.address}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    found.kubeconfig.write_text(json.dumps(document))
    thread = threading.Thread(target=found.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.http.shutdown()
    found.http.server_close()
    thread.join()


def anyloop(server: Server, *arguments: str) -> Result:
    return CliRunner().invoke(
        app,
        ["rollouts", *arguments, "--kubeconfig", str(server.kubeconfig)],
        env={"COLUMNS": "200", "USER": "joe", "LOGNAME": "joe"},
    )


def test_list_shows_phase_versions_and_replicas(server: Server) -> None:
    server.rollouts["policy"] = rollout(
        phase="Progressing", targetVersion="v2", stepSummary="2/3", replicas={"target": 1, "total": 3}
    )
    found = anyloop(server, "list")
    assert found.exit_code == 0
    for said in ("policy", "Progressing", "v1", "v2", "2/3", "1/3"):
        assert said in found.stdout
    assert json.loads(anyloop(server, "list", "--json").stdout)[0]["metadata"]["name"] == "policy"


def test_in_a_pod_it_asks_of_the_pods_namespace_as_its_account(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kubectl exec` into the controller: its account may see no other namespace, `default` least of all."""
    (tmp_path / "namespace").write_text("shop")
    monkeypatch.setattr(rollouts, "_POD_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr(
        kubernetes.config,
        "load_incluster_config",
        lambda client_configuration: setattr(client_configuration, "host", server.address),
    )
    found = CliRunner().invoke(app, ["rollouts", "list"], env={"COLUMNS": "200"})
    assert "No PolicyRollout in the namespace shop" in found.stdout


def test_an_empty_namespace_is_said_to_be_empty(server: Server) -> None:
    assert "No PolicyRollout in the namespace shop" in anyloop(server, "list").stdout
    found = anyloop(server, "status")
    assert (found.exit_code, "Name a PolicyRollout; in shop there are: none" in found.stderr) == (4, True)


def test_status_tells_what_went_wrong(server: Server) -> None:
    server.rollouts["policy"] = rollout(
        phase="RolledBack",
        message="v2: errors",
        versions=[{"version": "v1", "replicas": 3}],
        replicas={"ready": 3, "total": 3, "unreachable": 1},
        analysis=[{"name": "errors", "verdict": "Failed", "message": "40% of the requests failed"}],
        conditions=[
            {"type": "Degraded", "status": "True", "reason": "RolledBack", "message": "v2: errors"},
            {"type": "Available", "status": "True", "reason": "ReplicasReady"},
        ],
        history=[{"id": "v2@1", "version": "v2", "outcome": "RolledBack", "reason": "errors"}],
    )
    said = anyloop(server, "status").stdout
    for part in ("RolledBack", "3 of 3 ready", "1 do not answer", "metric errors", "40% of the requests", "degraded"):
        assert part in said
    assert "available" not in said


@pytest.mark.parametrize(
    ("verb", "patch"),
    [
        ("advance", {"metadata": {"annotations": {"anyloop.dev/advance": "v2@1/1 WHO"}}}),
        ("abort", {"metadata": {"annotations": {"anyloop.dev/abort": "v2@1 WHO"}}}),
        ("pause", {"spec": {"paused": True}, "metadata": {"annotations": {"anyloop.dev/paused-by": "WHO"}}}),
    ],
)
def test_commands_name_the_run_and_who_asks(server: Server, verb: str, patch: dict[str, Any]) -> None:
    server.rollouts["policy"] = rollout(run=RUN, phase="AwaitingAdvance")
    found = anyloop(server, verb)
    assert found.exit_code == 0, found.output
    said = json.dumps(server.patches).replace(f"joe@{socket.gethostname()}", "WHO")
    assert json.loads(said) == [patch]


def test_retry_names_the_rollout_that_failed_last(server: Server) -> None:
    server.rollouts["policy"] = rollout(history=[{"id": "v2@1", "version": "v2", "outcome": "RolledBack"}])
    assert anyloop(server, "retry").exit_code == 0
    annotation = server.patches[0]["metadata"]["annotations"]["anyloop.dev/retry"]
    assert annotation.startswith("v2@1 joe@")


@pytest.mark.parametrize(
    ("verb", "status", "said"),
    [
        ("advance", {}, "No rollout is under way, so there is nothing to advance: v1 is promoted"),
        ("advance", {"run": {**RUN, "state": "RollingBack"}}, "is RollingBack: nothing to advance"),
        ("advance", {"run": {k: v for k, v in RUN.items() if k != "stepReachedAt"}}, "has not reached its replicas"),
        ("abort", {}, "nothing to abort"),
        ("retry", {"run": RUN}, "v2 is being rolled out now: wait, or abort it"),
        ("retry", {"history": [{"id": "v1@1", "version": "v1", "outcome": "Completed"}]}, "nothing to retry"),
        ("resume", {}, "It is not paused"),
    ],
    ids=["no run", "rolling back", "not reached", "abort nothing", "retry running", "retry success", "resume"],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    server: Server, verb: str, status: dict[str, Any], said: str
) -> None:
    server.rollouts["policy"] = rollout(**status)
    found = anyloop(server, verb)
    assert found.exit_code == 5
    assert said in found.stderr.replace("\n", " ")
    assert server.patches == []


def test_an_unknown_name_and_a_cluster_that_is_away_have_exit_codes_of_their_own(server: Server) -> None:
    found = anyloop(server, "status", "other")
    assert found.exit_code == 4
    assert "is the chart installed there" in found.stderr.replace("\n", " ")
    config = server.kubeconfig
    config.write_text(config.read_text().replace(server.address, "http://127.0.0.1:1"))
    assert anyloop(server, "list").exit_code == 3
    config.write_text("no: kubeconfig")
    assert anyloop(server, "list").exit_code == 3


def test_waiting_for_a_rollout_that_fails_fails(server: Server) -> None:
    server.rollouts["policy"] = rollout(run=RUN, phase="Progressing")

    def end() -> None:
        history = [{"id": "v2@1", "version": "v2", "outcome": "RolledBack", "reason": "errors"}]
        server.rollouts["policy"] = rollout(phase="RolledBack", history=history)

    timer = threading.Timer(0.3, end)
    timer.start()
    found = anyloop(server, "status", "--wait", "10")
    timer.join()
    assert found.exit_code == 1
    assert "RolledBack" in found.stdout


FAILED = {"id": "v2@1", "version": "v2", "outcome": "RolledBack", "reason": "errors"}


@pytest.mark.parametrize(
    ("asked", "ended", "code"),
    [
        ({"annotations": {"anyloop.dev/retry": "v2@1 joe@desk"}}, [{**FAILED, "id": "v2@2"}], 1),
        (
            {"annotations": {"anyloop.dev/retry": "v2@1 joe@desk"}},
            [{**FAILED, "id": "v2@2", "outcome": "Completed"}],
            0,
        ),
        ({"generation": 2}, [{**FAILED, "id": "v3@2"}], 1),
        ({"generation": 2}, [{**FAILED, "id": "v3@2", "outcome": "Completed"}], 0),
        ({"generation": 2}, [], 0),
    ],
    ids=["retry failed", "retry completed", "new spec failed", "new spec completed", "new spec asks for nothing"],
)
def test_waiting_for_what_was_asked_for_and_has_not_begun(
    server: Server, asked: dict[str, Any], ended: list[dict[str, Any]], code: int
) -> None:
    before = rollout(phase="RolledBack", observedGeneration=1, history=[FAILED])
    before["metadata"] |= {"generation": 1, **asked}
    server.rollouts["policy"] = before

    def end() -> None:
        after = rollout(observedGeneration=before["metadata"]["generation"], history=[*ended, FAILED])
        server.rollouts["policy"] = {**after, "metadata": before["metadata"]}

    timer = threading.Timer(0.3, end)
    timer.start()
    found = anyloop(server, "status", "--wait", "10")
    timer.join()
    assert found.exit_code == code


def test_waiting_where_no_controller_takes_it_up_fails(server: Server) -> None:
    found = rollout()
    found["metadata"]["generation"] = 1
    server.rollouts["policy"] = found
    assert anyloop(server, "status", "--wait", "0.5").exit_code == 1
    found["status"]["observedGeneration"] = 1
    assert anyloop(server, "status", "--wait", "0.5").exit_code == 0  # nothing is under way
