"""What went wrong, and whether waiting helps."""

import errno
import sqlite3

from anyloop.log import LogError
from trainer.clients import ServiceError

# Full, over quota, read-only, broken or not mounted at the moment: the operator's to mend, no fault of a round.
_DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ENOMEM,
}
_DATABASE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY}


def cause_of(error: BaseException) -> str:
    """ "log", "service" or "disk" when something that may come back is away; else "round"."""
    if isinstance(error, LogError) and error.retriable:
        return "log"
    if isinstance(error, ServiceError) and error.away:
        return "service"
    if isinstance(error, OSError) and error.errno in _DISK:
        return "disk"
    if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _DATABASE:
        return "disk"
    return "round"


def is_away(error: BaseException) -> bool:
    """Whether the same may succeed later without anybody changing what is asked."""
    return cause_of(error) != "round"
