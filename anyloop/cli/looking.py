"""Opening the log to look at it: a command that only looks creates none."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from anyloop.cli.output import errors

if TYPE_CHECKING:
    from anyloop.log import EventLog


def missing_log(url: str) -> Path | None:
    """The file of an embedded log that is not there yet; None for one that is, and for a log elsewhere."""
    parts = urlsplit(url)
    if parts.scheme != "sqlite" or parts.netloc:  # a host in it: for open_log to refuse
        return None
    path = Path("/" + unquote(parts.path).lstrip("/"))
    return None if path.exists() else path


@contextmanager
def opened_to_look(url: str) -> Iterator["EventLog"]:
    """The log behind `url`. An embedded one that is not there yet is told on the screen and stood in for by an empty
    one without topics: a home chooses where its log is when it is first used, not when somebody looks."""
    from anyloop.log import open_log

    with ExitStack() as stack:
        if (path := missing_log(url)) is not None:
            notice = f"There is no log yet: {path} comes with `anyloop up` or `anyloop topics apply`."
            errors.print(notice, highlight=False, markup=False, soft_wrap=True)
            url = f"sqlite://{stack.enter_context(TemporaryDirectory())}/log.db"
        yield stack.enter_context(open_log(url))
