"""The script of `helm test`, as it is rendered, against a gateway that is slow, well, without models, or away."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.charts.rendering import pod_specs, rendered


class Gateway(ThreadingHTTPServer):
    """Answers as the gateway's routes do."""

    models = ("policy",)
    not_ready = 0
    seen: list[tuple[str, str]]

    def reply(self, path: str, authorization: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.seen.append((path, authorization))
        match path:
            case "/ready" if self.not_ready:
                self.not_ready -= 1
                return 503, {"status": "not ready", "reasons": ["policy: no replica serves"]}
            case "/ready":
                return 200, {"status": "ready"}
            case "/v1/models":
                return 200, {"data": [{"id": name} for name in self.models]}
            case "/v1/chat/completions" if body["model"] in self.models and body["messages"]:
                return 200, {"id": "r1", "system_fingerprint": "policy-000000"}
        return 404, {}


class Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else {}
        status, answer = self.server.reply(self.path, self.headers.get("Authorization", ""), body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Not into the test's output."""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway(("127.0.0.1", 0), Handler) as server:
        server.seen = []
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(url: str, key: str = "", keys_needed: str = "", pause: float = 0.0) -> subprocess.CompletedProcess[str]:
    (container,) = pod_specs(rendered("defaults"))["test"]["containers"]
    script = container["args"][0].replace("time.sleep(2)", f"time.sleep({pause})")
    given = {**os.environ, "GATEWAY": url, "API_KEY": key, "KEYS_NEEDED": keys_needed}
    command = [sys.executable, *container["command"][1:], script]
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False)


def url_of(gateway: Gateway) -> str:
    return f"http://127.0.0.1:{gateway.server_address[1]}"


def test_a_gateway_that_becomes_ready_is_asked_with_the_key(gateway: Gateway) -> None:
    gateway.not_ready = 2
    done = run(url_of(gateway), key="secret", keys_needed="yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["ready: ready", "models: policy", "answer: r1 by policy-000000"]
    assert [path for path, _ in gateway.seen] == ["/ready"] * 3 + ["/v1/models", "/v1/chat/completions"]
    assert {authorization for _, authorization in gateway.seen} == {"Bearer secret"}


def test_without_a_key_where_keys_are_on_it_says_what_was_not_tested(gateway: Gateway) -> None:
    done = run(url_of(gateway), keys_needed="yes")
    assert done.returncode == 0
    assert "readiness is all that was tested" in done.stdout


def test_no_model_and_no_readiness_fail_with_the_reason(gateway: Gateway) -> None:
    gateway.models = ()
    done = run(url_of(gateway))
    assert (done.returncode, done.stderr.strip()) == (1, "no model is served")
    gateway.not_ready = 1000
    done = run(url_of(gateway))
    assert done.returncode == 1
    assert "policy: no replica serves" in done.stderr


def test_a_gateway_that_is_away_fails_with_the_reason() -> None:
    done = run("http://127.0.0.1:9")
    assert done.returncode == 1
    assert "the gateway is not ready" in done.stderr
