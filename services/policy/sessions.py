"""Sessions: what a client with many streams holds on to, so that their answers travel together.

A client attaches with a name of its own; its `generate` requests then name the session and a stream number, are
acknowledged by one answer, and say the rest in the session's messages. When the request that attached is cancelled,
all that runs in the session is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from services.hosts.interface import HostError
from services.hosts.program import Cancel, Send
from services.policy.engine import Request
from services.policy.outlets import Session


class Sessions:
    """The open sessions of a program. `cancel` is called with the requests of a session that has gone."""

    def __init__(self, cancel: Callable[[list[Request]], None]) -> None:
        self._cancel = cancel
        self._open: dict[str, Session] = {}
        self._lock = threading.Lock()

    def attach(self, payload: dict[str, Any], send: Send) -> Cancel:
        """`send` carries the session's messages from now on; the result ends it. The first says `attached`."""
        name = str(payload.get("session") or "")
        if not name:
            raise HostError("INVALID_ARGUMENT", "attach needs a session: a name that nobody else uses")
        session = Session(send)
        with self._lock:
            if name in self._open:
                raise HostError("INVALID_ARGUMENT", f"session {name!r} is attached already: choose another name")
            self._open[name] = session
        try:
            send({"attached": name}, False)
        except Exception:
            with self._lock:
                del self._open[name]
            raise

        def detach() -> None:
            with self._lock:
                self._open.pop(name, None)
            self._cancel(session.close(HostError("CANCELLED", "the session was cancelled").to_payload()))

        return detach

    def find(self, payload: dict[str, Any]) -> tuple[Session, int]:
        """The session and the stream number that a request names. Raises HostError."""
        stream = payload.get("stream")
        if not isinstance(stream, int):
            raise HostError("INVALID_ARGUMENT", "a request in a session needs a stream: a number")
        session = self._open.get(str(payload["session"]))
        if session is None:
            raise HostError("UNAVAILABLE", "there is no such session: attach again")
        return session, stream

    def close(self) -> None:
        """Ends every session; what still ran has been told by then."""
        with self._lock:
            sessions, self._open = list(self._open.values()), {}
        for session in sessions:
            session.close(HostError("UNAVAILABLE", "the model is being unloaded").to_payload())
