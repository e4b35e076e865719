"""Memory of a process tree, shared pages counted once.

The sum of resident sizes counts every shared library once per process; the proportional set size (PSS) splits each
shared page among its users, so the sum over a tree is what the machine really gives it.
"""

import os
import threading
from pathlib import Path


def tree_pss_bytes(root: int) -> int:
    """PSS in bytes of `root` and all its descendants. Processes that end meanwhile count as nothing."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        waiting.extend(children.get(pid, []))
        total += _pss_bytes(pid)
    return total


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


class PeakMemory:
    """Samples the tree of this process in the background; `peak_bytes` is the largest sum seen."""

    def __init__(self, interval_s: float = 2.0) -> None:
        self.peak_bytes = 0
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, tree_pss_bytes(os.getpid()))
            if self._ended.wait(self._interval_s):
                return
