import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, Popen

from anyloop.cli.child import Child, marked

_ORPHAN_MAKER = (
    "import subprocess, sys, time; "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True); "
    "print('ready', flush=True); time.sleep(60)"
)


def _wait(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_output_goes_to_the_log_and_the_exit_status_is_known(tmp_path: Path) -> None:
    child = Child(
        [sys.executable, "-c", "print('one'); print('two'); raise SystemExit(7)"], os.environ, tmp_path / "a.log"
    )
    assert _wait(lambda: child.exit_status() is not None)
    assert child.exit_status() == 7
    assert child.log_tail(1) == "two"


def test_the_log_tail_leaves_out_what_an_earlier_start_wrote(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("of yesterday\n")
    child = Child([sys.executable, "-c", "print('of today')"], os.environ, tmp_path / "a.log")
    assert _wait(lambda: child.exit_status() is not None)
    assert child.log_tail() == "of today"


def test_kill_ends_what_the_child_started_in_a_session_of_its_own(tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", _ORPHAN_MAKER], os.environ, tmp_path / "a.log")
    assert _wait(lambda: child.log_tail() == "ready")
    family = marked(child._mark)
    assert len(family) == 2
    child.kill()
    assert _wait(lambda: all(_gone(pid) for pid in family))


def test_kill_ends_orphans_of_a_child_that_died_by_itself(tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", _ORPHAN_MAKER], os.environ, tmp_path / "a.log")
    assert _wait(lambda: child.log_tail() == "ready")
    family = marked(child._mark)
    os.kill(child.pid, signal.SIGKILL)
    assert _wait(lambda: child.exit_status() == -signal.SIGKILL)
    child.kill()
    assert _wait(lambda: all(_gone(pid) for pid in family))


def test_a_child_is_told_to_end_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    supervisor = (
        "import os, pathlib, sys, time; from anyloop.cli.child import Child; log = pathlib.Path(sys.argv[1]); "
        "child = Child([sys.executable, '-c', 'import time; time.sleep(60)'], os.environ, log); "
        "print(child.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", supervisor, str(tmp_path / "a.log")]
    with Popen(command, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        # The request to the kernel is the first thing the child does; it has become its program after that.
        program = b"import time; time.sleep(60)"
        assert _wait(lambda: program in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))
        process.kill()
        process.wait()
    assert _wait(lambda: _gone(pid))
