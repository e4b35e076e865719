import os
import subprocess
import sys

from anyloop.cli.memory import PeakMemory, tree_pss_bytes

_MIB = 2**20


def test_memory_of_a_child_counts_and_is_gone_with_it() -> None:
    alone = tree_pss_bytes(os.getpid())
    program = "data = bytearray(b'x') * (64 * 2**20); print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with_child = tree_pss_bytes(os.getpid())
        child.communicate(b"\n")
    assert 60 * _MIB < with_child - alone < 200 * _MIB
    assert tree_pss_bytes(os.getpid()) < with_child - 60 * _MIB


def test_the_peak_outlives_what_caused_it() -> None:
    with PeakMemory(interval_s=0.02) as memory:
        held = bytearray(b"x") * (48 * _MIB)
        while memory.peak_bytes < 48 * _MIB:
            pass
        del held
    assert memory.peak_bytes > 48 * _MIB


def test_a_process_that_does_not_exist_has_no_memory() -> None:
    assert tree_pss_bytes(2**22 + 1) == 0
