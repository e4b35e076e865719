"""Tracing by itself; tests/observability has it across the services."""

import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

from anyloop.config import Settings
from anyloop.telemetry import context, exporting, tracing
from tests.observability.collector import Collector, collecting


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracing, "_tracer", None)
    monkeypatch.setattr(tracing, "_content", False)
    monkeypatch.setattr(exporting, "_providers", [])
    context.enter([])
    with collecting() as found:
        yield found
        for provider in exporting._providers:
            provider.shutdown()


def settings(**given: object) -> Settings:
    return Settings(_env_file=None, **given)  # type: ignore[arg-type]


def test_without_an_endpoint_nothing_is_traced_nor_imported() -> None:
    program = """
        import sys
        from anyloop.config import Settings
        from anyloop.telemetry import process, tracing
        process.begin("test", Settings(_env_file=None))
        with tracing.span("x"):
            tracing.start("y").end()
        assert not tracing.on()
        assert not [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)


def test_spans_nest_fail_and_begin_anew_outside(collector: Collector) -> None:
    tracing.configure("policy", settings(otlp_endpoint=collector.address))
    with tracing.span("outer", attributes={"n": 1}) as outer:
        with pytest.raises(KeyError), tracing.span("inner"):
            raise KeyError("lost")
        outer.event("halfway")
    with tracing.span("alone"):
        pass
    tracing.flush()
    one, inner, alone = collector.one("outer"), collector.one("inner"), collector.one("alone")
    assert (one.service, one.attributes, one.events, one.failed) == ("anyloop-policy", {"n": 1}, ("halfway",), False)
    assert (inner.parent, inner.trace, inner.failed) == (one.id, one.trace, True)
    assert (alone.parent, alone.trace != one.trace) == ("", True)


def test_links_are_the_traces_named_and_malformed_ones_are_left_out(collector: Collector) -> None:
    tracing.configure("trainer", settings(otlp_endpoint=collector.address))
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    tracing.start("round", links=[f"00-{trace}-00f067aa0ba902b7-01", "", "00-nonsense"]).end()
    tracing.flush()
    assert collector.one("round").links == (trace,)


def test_opentelemetrys_own_variables_switch_on_and_off(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing.configure("gate", settings())
    assert not tracing.on()
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    tracing.configure("gate", settings())
    tracing.start("seen").end()
    tracing.flush()
    assert collector.one("seen").service == "anyloop-gate"


def test_what_the_sampler_leaves_out_is_passed_on_as_not_sampled(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tracing.configure("gateway", settings(otlp_endpoint=collector.address))
    span = tracing.start("unseen")
    assert int(span.traceparent[-2:], 16) & 1 == 0
    span.end()
    tracing.flush()
    assert collector.spans == []


def test_a_process_whose_collector_is_away_ends_within_seconds_and_says_so_once() -> None:
    program = """
        from anyloop.config import Settings
        from anyloop.telemetry import process, tracing
        process.begin("test", Settings(_env_file=None, otlp_endpoint="http://127.0.0.1:9"))
        for _ in range(2000):
            tracing.start("x").end()
        print("done", flush=True)
    """
    began = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert began.stdout is not None
    assert began.stdout.readline() == "done\n"
    at = time.monotonic()
    _, said = began.communicate(timeout=30)
    assert began.returncode == 0, said
    assert time.monotonic() - at < 8  # two seconds and the interpreter's end; the SDK's own way takes thirty
    assert said.count("UNAVAILABLE") <= 1
