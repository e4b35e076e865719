"""Whether what was measured is good enough: pure judgement, one metric at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from k8s import timestamps
from k8s.scrape import HISTOGRAMS, Sample
from k8s.spec import Analysis, ErrorRate, GateReport, Latency, Metric, PrometheusQuery


class Verdict(StrEnum):
    PASSED = "Passed"
    FAILED = "Failed"
    INCONCLUSIVE = "Inconclusive"  # too few requests, no data
    SKIPPED = "Skipped"  # nothing to compare with: every replica serves the target


@dataclass(frozen=True)
class Measurement:
    """One metric, measured once."""

    name: str
    verdict: Verdict
    value: float | None = None
    stable_value: float | None = None
    requests: int | None = None
    message: str = ""
    at: float | None = None
    failures: int = 0  # in this step, this one included
    passes: int = field(default=0, compare=False)

    def to_status(self) -> dict[str, Any]:
        found = {
            "name": self.name,
            "verdict": str(self.verdict),
            "value": _rounded(self.value),
            "stableValue": _rounded(self.stable_value),
            "requests": self.requests,
            "failures": self.failures,
            "message": self.message,
            "measuredAt": timestamps.written(self.at) if self.at is not None else None,
        }
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def from_status(cls, status: Mapping[str, Any]) -> "Measurement":
        return cls(
            name=status["name"],
            verdict=Verdict(status["verdict"]),
            value=status.get("value"),
            stable_value=status.get("stableValue"),
            requests=status.get("requests"),
            message=status.get("message", ""),
            at=timestamps.read(status.get("measuredAt")),
            failures=status.get("failures", 0),
        )


@dataclass(frozen=True)
class Step:
    """All metrics of a step so far."""

    failed: str = ""  # why the step has failed; empty while it has not
    conclusive: bool = True  # every metric has passed once
    doubt: str = ""  # what speaks against the target, where that is not enough to fail; of what has not passed yet


def of_errors(name: str, test: ErrorRate, target: Sample, stable: Sample | None, minimum: int) -> Measurement:
    """`stable` None: by this step no replica is left to compare with."""
    requests = int(target.requests)
    rate = target.error_rate
    beside = stable.error_rate if stable is not None and stable.requests >= minimum else None
    if rate is None or requests < minimum:
        return Measurement(name, Verdict.INCONCLUSIVE, rate, beside, requests, _few(requests, minimum))
    return _within(name, test, rate, beside, requests, "{:.2%} of the requests failed", "{:.2%}", stable is None)


def of_latency(name: str, test: Latency, target: Sample, stable: Sample | None, minimum: int) -> Measurement:
    histogram = HISTOGRAMS[test.of]
    requests = int(target.count(histogram))
    value = target.quantile(histogram, test.quantile)
    beside = None
    if stable is not None and stable.count(histogram) >= minimum:
        beside = stable.quantile(histogram, test.quantile)
    if value is None or requests < minimum:
        return Measurement(name, Verdict.INCONCLUSIVE, value, beside, requests, _few(requests, minimum))
    said = f"the {test.quantile:g} quantile of {test.of} is {{:.4g}} s"
    return _within(name, test, value, beside, requests, said, "{:.4g} s", stable is None)


def of_gate(name: str, test: GateReport, report: Mapping[str, Any]) -> Measurement:
    found: Any = report
    for key in test.path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    if isinstance(found, bool) or not isinstance(found, int | float):
        return Measurement(name, Verdict.FAILED, message=f"the gate's report has no number {test.path}", failures=1)
    return _bounded(name, float(found), test.min, test.max, f"{test.path} of the gate's report")


def of_query(name: str, test: PrometheusQuery, value: float | None, why: str = "") -> Measurement:
    """`value` None: the query gave no number, `why` says how."""
    if value is None:
        return Measurement(name, Verdict.INCONCLUSIVE, message=why or "the query gave nothing")
    return _bounded(name, value, test.min, test.max, "the query's result")


def of_step(analysis: Analysis, measurements: Mapping[str, Measurement]) -> Step:
    conclusive, doubt = True, ""
    for metric in analysis.live:
        found = measurements.get(metric.name)
        if found is not None and found.failures > analysis.failure_limit:
            return Step(f"metric {metric.name} failed {found.failures} times: {found.message}", False)
        if found is None or (not found.passes and found.verdict is not Verdict.SKIPPED):
            conclusive = False
            doubt = doubt or _doubt(metric, found)
    return Step(conclusive=conclusive, doubt=doubt)


def _doubt(metric: Metric, found: Measurement | None) -> str:
    if found is None:
        return ""
    if found.verdict is Verdict.FAILED:
        return f"metric {metric.name}: {found.message}"
    if isinstance(metric.test, ErrorRate | Latency) and found.value is not None:
        over = next((of for of, bound in _bounds(metric.test, found.stable_value) if found.value > bound), None)
        if over is not None:
            return f"metric {metric.name} is {found.value:.4g}, over the bound {over}: {found.message}"
    return ""


def _bounds(test: ErrorRate | Latency, beside: float | None) -> list[tuple[str, float]]:
    """What a value must not be over, each with what it is; `beside` is the stable replicas' value."""
    found: list[tuple[str, float]] = []
    if isinstance(test, ErrorRate):
        if test.max is not None:
            found.append(("of max", test.max))
        if test.max_difference is not None and beside is not None:
            found.append((f"of {beside:.2%} of the stable replicas plus maxDifference", beside + test.max_difference))
        return found
    if test.max_seconds is not None:
        found.append(("of maxSeconds", test.max_seconds))
    if test.max_ratio is not None and beside is not None:
        found.append((f"of {test.max_ratio:g} times the stable replicas'", beside * test.max_ratio))
    return found


def _within(
    name: str,
    test: ErrorRate | Latency,
    value: float,
    beside: float | None,
    requests: int,
    said: str,
    unit: str,
    alone: bool,
) -> Measurement:
    bounds = _bounds(test, beside)
    for of, bound in bounds:
        if value > bound:
            message = f"{said.format(value)}, over the {unit.format(bound)} {of}"
            return Measurement(name, Verdict.FAILED, value, beside, requests, message)
    compares = (test.max_difference if isinstance(test, ErrorRate) else test.max_ratio) is not None
    if compares and beside is None and not alone:
        message = "too few requests on stable replicas"
        return Measurement(name, Verdict.INCONCLUSIVE, value, beside, requests, message)
    if not bounds:  # only a comparison was asked for
        message = "no replica serves the stable version"
        return Measurement(name, Verdict.SKIPPED, value, beside, requests, message)
    return Measurement(name, Verdict.PASSED, value, beside, requests, said.format(value))


def _bounded(name: str, value: float, low: float | None, high: float | None, what: str) -> Measurement:
    if value != value:  # not a number
        return Measurement(name, Verdict.INCONCLUSIVE, message=f"{what} is not a number")
    if low is not None and value < low:
        return Measurement(name, Verdict.FAILED, value, message=f"{what} is {value:g}, under {low:g}")
    if high is not None and value > high:
        return Measurement(name, Verdict.FAILED, value, message=f"{what} is {value:g}, over {high:g}")
    return Measurement(name, Verdict.PASSED, value, message=f"{what} is {value:g}")


def _few(requests: int, minimum: int) -> str:
    return f"{requests} requests on the target's replicas so far, {minimum} are needed"


def _rounded(value: float | None) -> float | None:
    return None if value is None or value != value else float(f"{value:.6g}")
