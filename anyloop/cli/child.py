"""A supervised process: its own session, its output in a file, and no life after the supervisor's.

Run as a program (`python -m anyloop.cli.child PARENT ARGV...`) this module is the first thing in the child: it asks the
kernel for a SIGTERM when its parent dies, then becomes ARGV. A `preexec_fn` would do the same, but forks a process
whose gRPC threads hold locks. What the child starts carries its mark in the environment, so that `kill` finds all of
it, in whatever session and whoever its parent is by then.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_MARK = "ANYLOOP_SUPERVISED"


class Child:
    """Starts at construction. `terminate` asks the process itself; `kill` ends it and all it has started."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        """Output is appended to `log`, so that a restart keeps what was said before."""
        self.log = log
        self._mark = uuid.uuid4().hex
        self.started = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "anyloop.cli.child", str(os.getpid()), *argv],
                env={**env, _MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_status(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return self._process.poll()

    def terminate(self) -> None:
        """Asks the process to stop; it drains and ends its own children."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """Ends every process that carries the mark, and waits for the child itself."""
        while found := marked(self._mark):  # again: one of them may have forked meanwhile
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
        self._process.kill()
        self._process.wait()

    def log_tail(self, lines: int = 20) -> str:
        """The end of what this start of the process wrote."""
        with self.log.open("rb") as output:
            size = output.seek(0, os.SEEK_END)
            output.seek(max(self._log_start, size - 64 * 1024))
            return "\n".join(output.read().decode(errors="replace").splitlines()[-lines:])


def marked(mark: str) -> list[int]:
    """Ids of the processes of this user that were started, at whatever remove, by the child with this mark."""
    entry, found = f"{_MARK}={mark}".encode(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # ended meanwhile, or another user's
                if entry in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def _become(parent: int, argv: list[str]) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the request above
        sys.exit(1)
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
