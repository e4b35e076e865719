"""Exit codes of every command, and the errors that end one."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """What a calling script can tell apart. Usage errors exit with 2, as in most programs."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3  # no gateway, no replica, not ready
    NOT_FOUND = 4
    REFUSED = 5  # the other side understood and said no
    INTERRUPTED = 130


_PREFIXES = {"Settings": "ANYLOOP_", "KafkaSettings": "ANYLOOP_KAFKA_"}


class CommandError(Exception):
    """Ends a command with one sentence on stderr: what is wrong and the way out."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code


def as_command_error(error: Exception) -> CommandError | None:
    """What any command may meet: the log is away or refuses, a setting is wrong. None for any other error."""
    from pydantic import ValidationError

    from anyloop.log import LogError

    if isinstance(error, LogError):
        return CommandError(str(error), ExitCode.UNREACHABLE if error.retriable else ExitCode.REFUSED)
    if isinstance(error, ValidationError):
        prefix = _PREFIXES.get(error.title, "")
        complaints = [_complaint(detail, prefix) for detail in error.errors(include_input=False)]
        return CommandError("; ".join(complaints), ExitCode.USAGE)
    return None


def _complaint(detail: Mapping[str, Any], prefix: str) -> str:
    """One complaint of pydantic. That of a whole model names its settings itself."""
    message = str(detail["msg"]).removeprefix("Value error, ")
    field = ".".join(map(str, detail["loc"]))
    return f"{prefix}{field.upper() if prefix else field}: {message}" if field else message
