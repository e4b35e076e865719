"""Children of the benchmark: started with one thread each, watched for memory, ended with it whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from anyloop.cli.child import Child
from anyloop.cli.memory import tree_pss_bytes
from bench.serving.stats import Answer

START_SECONDS = 180.0


class ContenderFailed(Exception):
    """A contender could not be started, or ended by itself; the message has the end of its log."""


def environment() -> dict[str, str]:
    """That of every process here: one thread, no hub. `ANYLOOP_ENGINE_*` settings pass, and are reported."""
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **fixed}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(argv: Sequence[str], log: Path, ready: Callable[[], bool], name: str) -> Iterator[Child]:
    """A server process, ready; ended with all it started when the block is left. Raises ContenderFailed."""
    child = Child(argv, environment(), log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            status = child.exit_status()
            if status is not None:
                raise ContenderFailed(f"{name} exited with status {status}: {child.log_tail()}")
            if time.monotonic() > deadline:
                raise ContenderFailed(f"{name} was not ready after {START_SECONDS:.0f} s: {child.log_tail()}")
            time.sleep(0.2)
        yield child
    finally:
        child.kill()


class Watch:
    """What named process trees take while the block runs: the largest sum of their PSS, looked at once a second, and
    the processor seconds of each."""

    def __init__(self, roots: Mapping[str, int]) -> None:
        self.peak_bytes = 0
        self.cpu_seconds: dict[str, float] = {}
        self._roots = dict(roots)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._before = {name: _cpu_seconds(root) for name, root in self._roots.items()}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
        self.cpu_seconds = {name: _cpu_seconds(root) - self._before[name] for name, root in self._roots.items()}

    def _look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, sum(tree_pss_bytes(root) for root in self._roots.values()))

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            self._look()


def _cpu_seconds(root: int) -> float:
    """Of a process and its descendants that live now."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = psutil.Process(root)
        for process in (tree, *tree.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
    return total


def run_client(job: Mapping[str, Any]) -> list[Answer]:
    """One load from a process of its own. Raises ContenderFailed."""
    ended = subprocess.run(
        [sys.executable, "-m", "bench.serving.client"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    if ended.returncode:
        raise ContenderFailed(f"the client ended with status {ended.returncode}: {ended.stderr[-1500:]}")
    return [Answer(**answer) for answer in json.loads(ended.stdout)]


class Worker:
    """A process that answers one JSON line with one JSON line: what must not share this process's memory and cores."""

    def __init__(self, module: str, log: Path) -> None:
        self._module, self._log = module, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, **job: Any) -> Any:
        """Raises ContenderFailed when the job does, or the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(job), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text(errors="replace")[-1500:]
            raise ContenderFailed(f"{self._module} exited with status {self._process.wait()}: {tail}")
        answer = json.loads(line)
        if "error" in answer:
            raise ContenderFailed(answer["error"])
        return answer["result"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it holds nothing that must be put in order
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def serve_jobs(operations: Mapping[str, Callable[..., Any]]) -> None:
    """The other side of `Worker`: runs `operations[op](**job)` for every line until stdin ends."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else prints goes to the log
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = {"result": operations[job.pop("op")](**job)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)
