"""A disk that can be full: a small tmpfs, and ballast that takes what is left of it."""

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from anyloop.cli.exits import CommandError

_BALLAST = ".ballast"
_TOP_UP_S = 0.02


class SmallDisk:
    """`with SmallDisk(folder, mib) as disk: ... with disk.full(): ...`. Unmounted at the end, whatever happened.

    Raises CommandError where a tmpfs cannot be mounted, which needs root.
    """

    def __init__(self, folder: Path, mib: int) -> None:
        self.folder = folder
        self._mib = mib

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        while self.folder.is_mount():  # a run that was killed has left it
            self._unmount()
        command = ["mount", "-t", "tmpfs", "-o", f"size={self._mib}m,mode=0755", "anyloop-faults", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CommandError(
                f"a small disk at {self.folder} cannot be mounted ({done.stderr.strip()}): run as root, in a container "
                "with CAP_SYS_ADMIN, or leave these scenarios out (--only NAME names those to run)"
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._unmount()

    @contextmanager
    def full(self) -> Iterator[None]:
        """No byte is left on the disk, and what others give back is taken again, until the block ends."""
        ended = threading.Event()
        ballast = self.folder / _BALLAST
        with ballast.open("ab", buffering=0) as file:
            _fill(file.fileno())

            def top_up() -> None:
                while not ended.wait(_TOP_UP_S):
                    _fill(file.fileno())

            thread = threading.Thread(target=top_up, name="ballast", daemon=True)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()
                ballast.unlink()

    def _unmount(self) -> None:
        # Lazily: a process that is about to end may have a file open.
        subprocess.run(["umount", "--lazy", str(self.folder)], capture_output=True, check=True)


def _fill(descriptor: int) -> None:
    for size in (2**20, 4096):
        try:
            while True:
                os.write(descriptor, bytes(size))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
