"""Exit codes of every command, and the errors that end one."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a calling script can tell apart. Usage errors exit with 2, as in most programs."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3  # no gateway, no replica, not ready
    NOT_FOUND = 4
    REFUSED = 5  # the other side understood and said no
    INTERRUPTED = 130


class CommandError(Exception):
    """Ends a command with one sentence on stderr: what is wrong and the way out."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code
