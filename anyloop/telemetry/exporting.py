"""The part of tracing that needs OpenTelemetry's SDK: imported where an endpoint is set."""

import atexit
import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, Tracer, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from anyloop.telemetry.metrics import VERSION
from anyloop.telemetry.tracing import Kind, Value

_W3C = TraceContextTextMapPropagator()
_FLUSH_SECONDS = 2.0
_SAY_SECONDS = 60.0
_providers: list[TracerProvider] = []
_KINDS = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}


def open_tracer(service: str, endpoint: str) -> Tracer:
    """Exports in the background by OTLP over gRPC. Without `endpoint` the exporter reads OpenTelemetry's variables."""
    resource = Resource.create(
        {
            "service.namespace": "anyloop",
            "service.name": f"anyloop-{service}",
            "service.version": VERSION,
            "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
        }
    )
    exporter = OTLPSpanExporter(endpoint=endpoint or None)
    logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").addFilter(_Seldom())
    # The SDK's own end waits half a minute for a collector that is away, longer than a service may take to stop.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    atexit.register(_end, provider, exporter)
    _providers.append(provider)
    return provider.get_tracer("anyloop", VERSION)


def flush() -> None:
    """Sends what is left, for two seconds at most."""
    for provider in _providers:
        _flush(provider)


def _end(provider: TracerProvider, exporter: OTLPSpanExporter) -> None:
    _flush(provider)
    exporter.shutdown()  # ends the attempts to reach a collector that is away


def _flush(provider: TracerProvider) -> None:
    sending = threading.Thread(target=provider.force_flush, name="last spans", daemon=True)
    sending.start()
    sending.join(_FLUSH_SECONDS)


class _Seldom(logging.Filter):
    """A collector that is away for a day is worth a line a minute, not one for each attempt."""

    def __init__(self) -> None:
        super().__init__()
        self._said = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING and time.monotonic() - self._said < _SAY_SECONDS:
            return False
        self._said = time.monotonic()
        return True


class LiveSpan:
    """A span that is recorded, or at least passed on where the sampler left it out."""

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        kind: Kind,
        attributes: Mapping[str, Value],
        links: Iterable[str],
        parent: str,
    ) -> None:
        contexts = [get_current_span(_W3C.extract({"traceparent": one}, Context())).get_span_context() for one in links]
        self._span = tracer.start_span(
            name,
            context=_W3C.extract({"traceparent": parent}, Context()),  # "" makes a root: never what runs here by chance
            kind=_KINDS[kind],
            attributes=dict(attributes),
            links=[Link(one) for one in contexts if one.is_valid],
        )
        self._ended = False

    @property
    def traceparent(self) -> str:
        headers: dict[str, str] = {}
        _W3C.inject(headers, set_span_in_context(self._span))
        return headers.get("traceparent", "")

    def set(self, attributes: Mapping[str, Value]) -> None:
        self._span.set_attributes(dict(attributes))

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def event(self, name: str) -> None:
        self._span.add_event(name)

    def end(self, error: str | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, error[:1000]))
        self._span.end()
