"""The tools beside the Dockerfiles: bills of materials, pins, and the health check of the images."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.docker.compose_project import DOCKER

DIGEST = f"sha256:{'ab' * 32}"


def _run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DOCKER / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_a_bill_of_materials_names_the_base_and_every_locked_package_with_its_hashes(tmp_path: Path) -> None:
    assert _run("sbom.py", str(tmp_path)).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.cdx.json" for name in ("gateway", "services", "inprocess", "triton", "trainer", "controller")
    }
    document = json.loads((tmp_path / "controller.cdx.json").read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    base, *packages = document["components"]
    assert (base["type"], base["name"]) == ("container", "python")
    lock = (DOCKER / "locks" / "controller.txt").read_text()
    assert {f"{entry['name']}=={entry['version']}" for entry in packages} == set(
        re.findall(r"^[a-z0-9._-]+==[^\s;]+", re.sub(r"\[[^\]]*\]", "", lock), re.MULTILINE)
    )
    hashes = [part["content"] for entry in packages for file in entry["externalReferences"] for part in file["hashes"]]
    assert sorted(hashes) == sorted(re.findall(r"sha256:([0-9a-f]{64})", lock))
    references = {entry["bom-ref"] for entry in document["components"]}
    assert set(document["dependencies"][0]["dependsOn"]) == references
    assert len(references) == len(document["components"])


def test_bills_are_the_same_from_the_same_inputs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _run("sbom.py", str(tmp_path / name))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def _pin(file: Path, tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """With a `crane` that answers as the script `tool` does."""
    crane = file.parent / "crane"
    crane.write_text(f"#!/bin/sh\n{tool}\n")
    crane.chmod(0o755)
    command = [sys.executable, str(DOCKER / "pin.py"), "--file", str(file), *arguments]
    environment = {"PATH": f"{file.parent}:/usr/bin:/bin"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)


def test_pins_are_what_the_registry_says_and_are_renewed(tmp_path: Path) -> None:
    file = tmp_path / "images.env"
    file.write_text(f"# why\nANYLOOP_VERSION=1\nA_IMAGE=python:3.11\nB_IMAGE=a/b:1@sha256:{'cd' * 32}\n")
    assert _pin(file, f"echo {DIGEST}", "--check").returncode == 1
    assert _pin(file, f"echo {DIGEST}").returncode == 0
    assert file.read_text() == f"# why\nANYLOOP_VERSION=1\nA_IMAGE=python:3.11@{DIGEST}\nB_IMAGE=a/b:1@{DIGEST}\n"
    assert _pin(file, f"echo {DIGEST}", "--check").returncode == 0


@pytest.mark.parametrize("tool", ["echo no such image >&2; exit 1", "echo latest", 'test "$2" = a:1 && echo ' + DIGEST])
def test_nothing_is_pinned_when_one_registry_does_not_answer(tmp_path: Path, tool: str) -> None:
    file = tmp_path / "images.env"
    file.write_text("A_IMAGE=a:1\nB_IMAGE=b:1\n")
    refused = _pin(file, tool)
    assert refused.returncode == 1
    assert refused.stderr.startswith("pin: crane digest")
    assert file.read_text() == "A_IMAGE=a:1\nB_IMAGE=b:1\n"


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready" else 503)
        self.end_headers()
        self.wfile.write(b"no replica serves")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def http_port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_an_http_service_is_healthy_when_it_answers_200_and_says_why_not(http_port: int) -> None:
    assert _run("healthcheck.py", "http", str(http_port), "/ready").returncode == 0
    ill = _run("healthcheck.py", "http", str(http_port), "/other")
    assert (ill.returncode, ill.stdout) == (1, "503 no replica serves\n")
    away = _run("healthcheck.py", "http", "9", "/ready")
    assert away.returncode == 1
    assert "refused" in away.stdout


def test_a_grpc_service_is_healthy_while_it_serves() -> None:
    servicer = health.HealthServicer()
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        assert _run("healthcheck.py", "grpc", str(port)).stdout == "healthy\n"
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        ill = _run("healthcheck.py", "grpc", str(port))
        assert (ill.returncode, ill.stdout) == (1, "NOT_SERVING\n")
        server.stop(None).wait()
    assert _run("healthcheck.py", "grpc", str(port)).returncode == 1


def test_a_wrong_call_of_the_health_check_is_unhealthy() -> None:
    assert _run("healthcheck.py", "tcp").returncode == 1
