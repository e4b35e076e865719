import subprocess
import sys
import threading
from subprocess import PIPE

import pytest

from anyloop.cli.memory import PeakMemory, tree_pss_bytes

_MIB = 2**20


def test_memory_of_a_child_counts_and_is_gone_with_it() -> None:
    # A tree of its own: what this process shares with others changes with them.
    child = "data = bytearray(b'x') * (64 * 2**20); print('held', flush=True); input()"
    parent = (
        "import subprocess, sys; print('alone', flush=True); input(); "
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE); input(); "
        "p.communicate(b'\\n'); print('gone', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdin=PIPE, stdout=PIPE, text=True) as root:

        def measured_at(word: str) -> int:
            assert root.stdout is not None
            assert root.stdout.readline().strip() == word
            total = tree_pss_bytes(root.pid)
            assert root.stdin is not None
            root.stdin.write("\n")
            root.stdin.flush()
            return total

        alone, with_child, after = (measured_at(word) for word in ("alone", "held", "gone"))
    assert 60 * _MIB < with_child - alone < 100 * _MIB
    assert after < with_child - 60 * _MIB


def test_the_peak_outlives_what_caused_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([10, 50, 20])
    ended = threading.Event()

    def measure(root: int) -> int:
        try:
            return next(sizes)
        except StopIteration:
            ended.set()
            return 20

    monkeypatch.setattr("anyloop.cli.memory.tree_pss_bytes", measure)
    with PeakMemory(interval_s=0.001) as memory:
        assert ended.wait(20)
    assert memory.peak_bytes == 50


def test_a_process_that_does_not_exist_has_no_memory() -> None:
    assert tree_pss_bytes(2**22 + 1) == 0
