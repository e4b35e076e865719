import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from anyloop.cli.exits import ExitCode
from tests.models.random_omni import build_random_omni

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
_OFFSET = 4100


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_omni(tmp_path_factory.mktemp("model"))


def _environment(home: Path, model: Path) -> dict[str, str]:
    return {**os.environ, "ANYLOOP_HOME": str(home), "ANYLOOP_MODEL_DIR": str(model), "COLUMNS": "200"}


@contextmanager
def _up(home: Path, model: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`anyloop up`, ready. What it started is ended whatever happens."""
    command = [sys.executable, "-m", "anyloop.cli", "up", f"--port-offset={_OFFSET}", *options]
    process = subprocess.Popen(
        command, env=_environment(home, model), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if line.startswith("logs "):
                break
        else:
            pytest.fail("".join(said))
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=90)


def _family(home: Path) -> list[int]:
    """Every live process that works on this home, however it came to be."""
    mark = f"ANYLOOP_HOME={home}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _left(home: Path, seconds: float) -> list[int]:
    deadline = time.monotonic() + seconds
    while _family(home) and time.monotonic() < deadline:
        time.sleep(0.1)
    return _family(home)


def _anyloop(home: Path, model: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "anyloop.cli", *arguments]
    return subprocess.run(command, env=_environment(home, model), capture_output=True, text=True, timeout=60)


def test_up_on_triton_answers_takes_feedback_and_stops_without_a_trace(tmp_path: Path, model: Path) -> None:
    home = tmp_path / "home"
    with _up(home, model, "--no-trainer") as up:
        status = _anyloop(home, model, "status", "--json")
        assert status.returncode == ExitCode.OK
        report = json.loads(status.stdout)
        assert report["gateway"]["ready"] is True
        assert report["replicas"]["policy"]["serving_version"] == "policy-000000"

        made = _anyloop(home, model, "generate", "Draw it.", "-m", "image", "--seed=1", f"--out={tmp_path}", "--json")
        assert made.returncode == ExitCode.OK, made.stderr
        answer = json.loads(made.stdout)
        assert Path(answer["files"][0]).read_bytes().startswith(b"\x89PNG")

        said = _anyloop(home, model, "feedback", answer["id"], "--critique", "make it red", "--bad", "--json")
        assert said.returncode == ExitCode.OK, said.stderr
        records = _anyloop(home, model, "log", "read", "feedback", "--json").stdout.splitlines()
        assert json.loads(records[0])["message"]["feedback"]["critique"] == "make it red"

        second = _anyloop(home, model, "up", "--no-trainer", "--port-offset=4300")
        assert second.returncode == ExitCode.FAILED
        assert "Another `anyloop up` runs" in " ".join(second.stderr.split())

        assert any("tritonserver" in Path(f"/proc/{pid}/cmdline").read_text() for pid in _family(home))
        up.send_signal(signal.SIGINT)
        assert up.wait(timeout=90) == ExitCode.OK
    assert _family(home) == []
    assert (
        _anyloop(home, model, "status", f"--url=http://127.0.0.1:{8080 + _OFFSET}").returncode == ExitCode.UNREACHABLE
    )


def test_a_service_that_is_killed_ends_up_with_its_name_and_the_end_of_its_log(tmp_path: Path, model: Path) -> None:
    home = tmp_path / "home"
    with _up(home, model, "--no-trainer", "--host=inprocess") as up:
        victim = next(p for p in _family(home) if "services.critique" in Path(f"/proc/{p}/cmdline").read_text())
        os.kill(victim, signal.SIGKILL)
        output, _ = up.communicate(timeout=60)
    assert up.returncode == ExitCode.FAILED
    assert re.search(r"critique was ended by signal 9\. The end of .*critique\.log", output)
    assert _family(home) == []


def test_nothing_outlives_a_supervisor_that_is_killed(tmp_path: Path, model: Path) -> None:
    home = tmp_path / "home"
    with _up(home, model, "--no-trainer") as up:
        assert len(_family(home)) > 5
        up.kill()
        up.wait()
    assert _left(home, 45) == []


def test_rollback_swaps_a_running_replica_while_requests_go_on(tmp_path: Path, model: Path) -> None:
    home = tmp_path / "home"
    with _up(home, model, "--no-trainer", "--host=inprocess"):
        second = _publish_second(home)
        promoted = _anyloop(home, model, "checkpoints", "promote", second, "--json")
        assert promoted.returncode == ExitCode.OK, promoted.stderr
        assert _answering(home) == second
        back = _anyloop(home, model, "checkpoints", "rollback", "--json")
        assert json.loads(back.stdout)["version"] == "policy-000000"
        assert _answering(home) == "policy-000000"


def _publish_second(home: Path) -> str:
    from anyloop.registry import Registry

    registry = Registry(home / "registry")
    base = registry.manifest("policy-000000")

    def write(folder: Path) -> None:
        for name in base.files:
            (folder / name).write_bytes((registry.path(base.version) / name).read_bytes())

    return registry.publish("policy", write, parent=base.version, weights_digest=base.weights_digest).version


def _answering(home: Path) -> str:
    url = json.loads((home / "up.json").read_text())["gateway_url"]
    body = {
        "model": "anyloop",
        "messages": [{"role": "user", "content": "hello"}],
        "modalities": ["text"],
        "max_completion_tokens": 4,
        "store": False,
    }
    completion = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30, trust_env=False).json()
    return str(completion["system_fingerprint"])
