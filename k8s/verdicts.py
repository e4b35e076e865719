"""Whether what was measured is good enough: pure judgement, one metric at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from k8s import timestamps
from k8s.scrape import HISTOGRAMS, Sample
from k8s.spec import Analysis, ErrorRate, GateReport, Latency, PrometheusQuery


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


def of_errors(name: str, test: ErrorRate, target: Sample, stable: Sample | None, minimum: int) -> Measurement:
    requests = int(target.requests)
    rate = target.error_rate
    if rate is None or requests < minimum:
        return Measurement(name, Verdict.INCONCLUSIVE, rate, requests=requests, message=_few(requests, minimum))
    beside = stable.error_rate if stable else None
    bounds = [("of max", test.max)] if test.max is not None else []
    if test.max_difference is not None and beside is not None:
        bounds.append((f"of {beside:.2%} of the stable replicas plus maxDifference", beside + test.max_difference))
    return _within(name, rate, beside, requests, bounds, "{:.2%} of the requests failed", "{:.2%}", stable)


def of_latency(name: str, test: Latency, target: Sample, stable: Sample | None, minimum: int) -> Measurement:
    histogram = HISTOGRAMS[test.of]
    requests = int(target.count(histogram))
    value = target.quantile(histogram, test.quantile)
    if value is None or requests < minimum:
        return Measurement(name, Verdict.INCONCLUSIVE, value, requests=requests, message=_few(requests, minimum))
    beside = None
    if stable is not None and stable.count(histogram) >= minimum:
        beside = stable.quantile(histogram, test.quantile)
    bounds = [("of maxSeconds", test.max_seconds)] if test.max_seconds is not None else []
    if test.max_ratio is not None and beside is not None:
        bounds.append((f"of {test.max_ratio:g} times the stable replicas'", beside * test.max_ratio))
    said = f"the {test.quantile:g} quantile of {test.of} is {{:.4g}} s"
    return _within(name, value, beside, requests, bounds, said, "{:.4g} s", stable)


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
    conclusive = True
    for metric in analysis.live:
        found = measurements.get(metric.name)
        if found is not None and found.failures > analysis.failure_limit:
            return Step(f"metric {metric.name} failed {found.failures} times: {found.message}", False)
        if found is None or (not found.passes and found.verdict is not Verdict.SKIPPED):
            conclusive = False
    return Step(conclusive=conclusive)


def _within(
    name: str,
    value: float,
    beside: float | None,
    requests: int,
    bounds: list[tuple[str, float]],
    said: str,
    unit: str,
    stable: Sample | None,
) -> Measurement:
    if not bounds:  # only a comparison was asked for
        verdict = Verdict.SKIPPED if stable is None else Verdict.INCONCLUSIVE
        message = "no replica serves the stable version" if stable is None else "too few requests on stable replicas"
        return Measurement(name, verdict, value, beside, requests, message)
    over = next(((of, bound) for of, bound in bounds if value > bound), None)
    if over is None:
        return Measurement(name, Verdict.PASSED, value, beside, requests, said.format(value))
    of, bound = over
    message = f"{said.format(value)}, over the {unit.format(bound)} {of}"
    return Measurement(name, Verdict.FAILED, value, beside, requests, message)


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
