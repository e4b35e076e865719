"""The part of tracing that needs OpenTelemetry's SDK: imported where an endpoint is set."""

import os
import socket
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
_FLUSH_MS = 2000
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
    provider = TracerProvider(resource=resource)  # flushes at the exit of the process
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _providers.append(provider)
    return provider.get_tracer("anyloop", VERSION)


def flush() -> None:
    for provider in _providers:
        provider.force_flush(_FLUSH_MS)


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
