"""The outbox of a service, as the settings want it: a folder under home that nobody shares."""

from functools import partial

from anyloop.config import Settings
from anyloop.log import open_log
from anyloop.log.spool import Fsync, SpooledWriter


def open_outbox(settings: Settings, name: str, fsync: Fsync) -> SpooledWriter:
    """Not started. Raises LogError when another process has it, OSError when the folder cannot be made."""
    return SpooledWriter(
        partial(open_log, settings.effective_log_url),
        settings.home / "spool" / name,
        settings.spool_max_bytes,
        fsync=fsync,
        fsync_ms=settings.spool_fsync_ms,
    )
