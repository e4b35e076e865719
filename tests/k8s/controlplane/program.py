"""One program of the control plane as a child process."""

import os
import socket
from pathlib import Path

from anyloop.cli.child import Child


class Program:
    """Is killed and started again with the same arguments. The kernel ends it with the thread that started it."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command = command
        self._log = log
        self._child: Child | None = None

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.exit_status() is None

    @property
    def tail(self) -> str:
        """The end of what it logged."""
        return self._child.log_tail() if self._child is not None else ""

    def start(self) -> None:
        self._child = Child(self._command, os.environ, self._log)

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()


def free_ports(count: int) -> list[int]:
    """TCP ports that nobody has now, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
