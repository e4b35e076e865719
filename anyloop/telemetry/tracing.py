"""Traces by OpenTelemetry: off unless an OTLP endpoint is set, and then nothing of it is even imported.

A span is started with `start`, which leaves the present context alone (for streams, whose steps run in several tasks),
or entered with `span`, inside of which it is the parent of what is started. Parents and links are W3C `traceparent`
strings, which is also how they travel: in gRPC metadata, in the events of the log, and in `context`.

Sampling and export follow OpenTelemetry's own variables (`OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`, `OTEL_EXPORTER_OTLP_*`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

from anyloop.telemetry import context

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from anyloop.config import Settings

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | int | float | bool | list[str]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Span(Protocol):
    """One piece of work. `end` it once, whatever happened."""

    @property
    def traceparent(self) -> str:
        """Its W3C header; where nothing is traced, that of whoever asked, so that it goes on to the next."""
        ...

    def set(self, attributes: Mapping[str, Value]) -> None: ...

    def rename(self, name: str) -> None: ...

    def event(self, name: str) -> None: ...

    def end(self, error: str | None = None) -> None:
        """`error` says why it failed."""
        ...


class _NoSpan:
    """Every span of a process that traces nothing."""

    @property
    def traceparent(self) -> str:
        return context.traceparent()

    def set(self, attributes: Mapping[str, Value]) -> None:
        pass

    def rename(self, name: str) -> None:
        pass

    def event(self, name: str) -> None:
        pass

    def end(self, error: str | None = None) -> None:
        pass


NO_SPAN: Span = _NoSpan()
_tracer: Tracer | None = None
_content = False


def configure(service: str, settings: Settings) -> None:
    """Once, at the start of a process: exports from here on where an endpoint is set. What is not sent yet goes out at
    the end of the process."""
    endpoint = settings.otlp_endpoint or next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
    if not endpoint or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    from anyloop.telemetry.exporting import open_tracer

    global _tracer, _content
    _tracer = open_tracer(service, settings.otlp_endpoint)
    _content = settings.trace_content


def on() -> bool:
    return _tracer is not None


def flush() -> None:
    """Sends what is left, where a process does not come to its ordinary end."""
    if _tracer is not None:
        from anyloop.telemetry.exporting import flush as send

        send()


def wants_content() -> bool:
    """Whether spans may carry what people wrote and what was answered (`ANYLOOP_TRACE_CONTENT`)."""
    return _content and _tracer is not None


def start(
    name: str,
    *,
    kind: Kind = "internal",
    attributes: Mapping[str, Value] | None = None,
    links: Iterable[str] = (),
    parent: str | None = None,
) -> Span:
    """A span below `parent`, or below the present one. `links` are traceparents; malformed ones are left out."""
    if _tracer is None:
        return NO_SPAN
    from anyloop.telemetry.exporting import LiveSpan

    return LiveSpan(_tracer, name, kind, attributes or {}, links, context.traceparent() if parent is None else parent)


@contextmanager
def span(
    name: str, *, kind: Kind = "internal", attributes: Mapping[str, Value] | None = None, links: Iterable[str] = ()
) -> Iterator[Span]:
    """The present span until it is left; fails with what is raised in it. Not around a `yield` of a generator."""
    if _tracer is None:
        yield NO_SPAN
        return
    outside = context.traceparent()
    found = start(name, kind=kind, attributes=attributes, links=links)
    context.set_traceparent(found.traceparent)
    try:
        yield found
    except BaseException as error:
        found.end(f"{type(error).__name__}: {error}")
        raise
    finally:
        context.set_traceparent(outside)
        found.end()
