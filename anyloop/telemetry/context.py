"""What belongs to the request in work: its ids, for log lines and for whoever is asked next, and its place in a trace.

Context variables: a task and what it starts see them, other requests do not. The two ids and the W3C `traceparent`
travel as gRPC metadata, and a `traceparent` goes on from a client to the log also where this process traces nothing.
"""

import re
import uuid
from collections.abc import Iterable, Mapping
from contextvars import ContextVar

REQUEST_ID, RESPONSE_ID, TRACEPARENT = "x-request-id", "x-response-id", "traceparent"

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_NOTHING: Mapping[str, str] = {}

_ids: ContextVar[Mapping[str, str]] = ContextVar("anyloop_ids", default=_NOTHING)
_traceparent: ContextVar[str] = ContextVar("anyloop_traceparent", default="")


def bind(**ids: str) -> None:
    """From here on these fields stand in every log line of this request."""
    _ids.set({**_ids.get(), **ids})


def bound() -> Mapping[str, str]:
    """The fields of a log line: the bound ids, and `trace_id` within a trace."""
    found = _TRACEPARENT.fullmatch(traceparent()) if traceparent() else None
    return {**_ids.get(), "trace_id": found[1]} if found else _ids.get()


def traceparent() -> str:
    """The W3C header of the present span, "" outside of any trace."""
    return _traceparent.get()


def set_traceparent(value: str) -> None:
    _traceparent.set(value)


def enter(headers: Iterable[tuple[str, str | bytes]]) -> None:
    """Takes over what a caller sent along, and nothing from whoever ran here before. What is malformed is passed over:
    these are names for people to search by, no reason to refuse a request."""
    ids, parent = {}, ""
    for name, value in headers:
        if name == TRACEPARENT and isinstance(value, str) and _TRACEPARENT.fullmatch(value):
            parent = value
        elif name in (REQUEST_ID, RESPONSE_ID) and isinstance(value, str) and _ID.fullmatch(value):
            ids[name.removeprefix("x-").replace("-", "_")] = value
    _ids.set(ids)
    _traceparent.set(parent)


def request_id() -> str:
    """The id of the request in work; one is made where it has none."""
    found = _ids.get().get("request_id")
    if found is None:
        found = f"req-{uuid.uuid4().hex}"
        bind(request_id=found)
    return found


def outgoing() -> tuple[tuple[str, str], ...]:
    """gRPC metadata for the next service."""
    ids = _ids.get()
    found = [(f"x-{name.replace('_', '-')}", ids[name]) for name in ("request_id", "response_id") if name in ids]
    if parent := traceparent():
        found.append((TRACEPARENT, parent))
    return tuple(found)
