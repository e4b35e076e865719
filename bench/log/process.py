"""Each figure comes from a process of its own: `python -m bench.log.process JSON`, one line of JSON back."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Usage:
    cpu: float  # seconds of all threads
    rss_mb: float  # most memory so far

    @classmethod
    def now(cls) -> Usage:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(self.cpu - earlier.cpu, self.rss_mb)


class Failed(Exception):
    """A measurement ended without a figure; says why."""


def measured(job: dict[str, Any], when_connected: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Runs `job` in a new process. `when_connected` is called when the job waits for it. Raises Failed."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.log.process", json.dumps(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            for line in child.stdout:
                answer: dict[str, Any] = json.loads(line)
                if answer != {"connected": True}:
                    return answer
                when_connected()
                print(file=child.stdin, flush=True)
            raise Failed(f"{job}: {child.stderr.read()[-2000:]}")
        finally:
            child.kill()


def rss_mb(pid: int) -> float:
    """Of another process, now."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _connected() -> None:
    print(json.dumps({"connected": True}), flush=True)
    sys.stdin.readline()


def main(job: dict[str, Any]) -> dict[str, Any]:
    from bench.log.latency import floor, recording
    from bench.log.throughput import appending, through_outbox

    kind = job.pop("kind")
    if "folder" in job:
        job["folder"] = Path(job["folder"])
    if kind == "append":
        return appending(**job)
    if kind == "outbox":
        return through_outbox(**job)
    if kind == "floor":
        return floor(**job)
    return recording(**job, connected=_connected)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))), flush=True)
