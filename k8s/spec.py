"""What a PolicyRollout asks for, as values. The definition in crds/ has checked and filled it; this only reads it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

GROUP = "anyloop.dev"
VERSION = "v1alpha1"
PLURAL = "policyrollouts"
KIND = "PolicyRollout"
API_VERSION = f"{GROUP}/{VERSION}"
FINALIZER = f"{GROUP}/return-to-stable"
# What an operator asks for once. Each names the run that it is about, so that an old one asks for nothing; after a
# space may stand who asks.
ADVANCE = f"{GROUP}/advance"  # RUN/STEP: go on from this step of this run
ABORT = f"{GROUP}/abort"  # RUN: end this run and go back
RETRY = f"{GROUP}/retry"  # RUN: roll the version of this ended run out once more
PAUSED_BY = f"{GROUP}/paused-by"  # who changed spec.paused last, for the audit trail

MANUAL = math.inf  # a pause that only an operator ends
_UNITS = {"s": 1, "m": 60, "h": 3600}


class SpecError(ValueError):
    """The spec cannot be acted on. The definition's rules keep this from happening; an older definition may not."""


@dataclass(frozen=True)
class Share:
    """A number of replicas, or a part of them."""

    count: int = 0
    percent: int | None = None

    @classmethod
    def parse(cls, value: int | str) -> "Share":
        if isinstance(value, int):
            return cls(count=value)
        if match := re.fullmatch(r"(\d{1,3})%", value):
            return cls(percent=int(match[1]))
        raise SpecError(f"{value!r} is neither a number of replicas nor a share such as 20%")

    def up(self, total: int) -> int:
        """Of `total` replicas, a share rounded up: 20% of one replica is that replica."""
        return self.count if self.percent is None else math.ceil(total * self.percent / 100)

    def down(self, total: int) -> int:
        return self.count if self.percent is None else total * self.percent // 100


ALL = Share(percent=100)


@dataclass(frozen=True)
class Step:
    replicas: Share
    pause: float = 0.0  # seconds at least, or MANUAL
    analysis: bool = True

    @property
    def waits_before_any(self) -> bool:
        """Whether it asks for no replica at all, however large the fleet is."""
        return self.replicas in (Share(0), Share(percent=0))


@dataclass(frozen=True)
class ErrorRate:
    max: float | None = None
    max_difference: float | None = None


@dataclass(frozen=True)
class Latency:
    of: Literal["TimeToFirstToken", "InterToken", "Response"] = "TimeToFirstToken"
    quantile: float = 0.95
    max_seconds: float | None = None
    max_ratio: float | None = None


@dataclass(frozen=True)
class GateReport:
    path: str
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True)
class PrometheusQuery:
    query: str
    address: str = ""
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True)
class Metric:
    name: str
    test: ErrorRate | Latency | GateReport | PrometheusQuery


@dataclass(frozen=True)
class Analysis:
    metrics: tuple[Metric, ...] = ()
    interval: float = 15.0
    warm_up: float = 10.0
    minimum_requests: int = 20
    failure_limit: int = 0
    waits: bool = True  # for metrics without enough data; else a step goes on when its pause is over

    @property
    def live(self) -> tuple[Metric, ...]:
        """Those that are measured in steps."""
        return tuple(metric for metric in self.metrics if not isinstance(metric.test, GateReport))


@dataclass(frozen=True)
class Requirement:
    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def holds(self, labels: Mapping[str, str]) -> bool:
        if self.operator == "Exists":
            return self.key in labels
        if self.operator == "DoesNotExist":
            return self.key not in labels
        found = labels.get(self.key) in self.values
        return found if self.operator == "In" else not found


@dataclass(frozen=True)
class Spec:
    requirements: tuple[Requirement, ...]
    lineage: str = "policy"
    version: str = ""  # empty: the channel of approved versions
    steps: tuple[Step, ...] = (Step(ALL),)
    swap_mode: str = ""
    max_swapping: int = 1
    max_unreachable: Share = field(default_factory=lambda: Share(percent=10))
    max_replica_failures: int = 3
    paused: bool = False
    progress_deadline: float = 900.0
    max_mixed: float = 86400.0
    history_limit: int = 10
    analysis: Analysis = field(default_factory=Analysis)

    @classmethod
    def parse(cls, spec: Mapping[str, Any]) -> "Spec":
        """Raises SpecError."""
        try:
            return cls(
                requirements=_requirements(spec["selector"]),
                lineage=spec.get("lineage", "policy"),
                version=spec["target"].get("version", ""),
                steps=_steps(spec.get("strategy", {})),
                swap_mode=spec.get("swapMode", "").lower(),
                max_swapping=spec.get("maxSwapping", 1),
                max_unreachable=Share.parse(spec.get("maxUnreachable", "10%")),
                max_replica_failures=spec.get("maxReplicaFailures", 3),
                paused=spec.get("paused", False),
                progress_deadline=spec.get("progressDeadlineSeconds", 900),
                max_mixed=spec.get("maxMixedSeconds", 86400) or math.inf,
                history_limit=spec.get("historyLimit", 10),
                analysis=_analysis(spec.get("analysis", {})),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise SpecError(f"the spec lacks or misnames something: {error!r}") from error

    def selects(self, labels: Mapping[str, str]) -> bool:
        return bool(self.requirements) and all(one.holds(labels) for one in self.requirements)


def _requirements(selector: Mapping[str, Any]) -> tuple[Requirement, ...]:
    labels = [Requirement(key, "In", frozenset([value])) for key, value in selector.get("matchLabels", {}).items()]
    expressions = [
        Requirement(one["key"], one["operator"], frozenset(one.get("values", ())))
        for one in selector.get("matchExpressions", ())
    ]
    return (*labels, *expressions)


def _steps(strategy: Mapping[str, Any]) -> tuple[Step, ...]:
    """The last step is always all replicas. Manual begins with a step of none; an operator ends each but the last."""
    kind = strategy.get("type", "AllAtOnce")
    given = [
        Step(Share.parse(one["replicas"]), _pause(one.get("pause", 0)), one.get("analysis", True))
        for one in strategy.get("steps", ())
    ]
    if kind == "Manual":
        given = [Step(one.replicas, MANUAL, one.analysis) for one in given or [Step(Share(1))]]
        given.insert(0, Step(Share(0), MANUAL, analysis=False))
    if not given or given[-1].replicas != ALL:
        given.append(Step(ALL))
    return tuple(given)


def _pause(value: int | str) -> float:
    if value == "manual":
        return MANUAL
    if isinstance(value, int):
        return float(value)
    if match := re.fullmatch(r"(\d+)([smh])", value):
        return float(int(match[1]) * _UNITS[match[2]])
    raise SpecError(f"pause {value!r} is neither seconds, nor a duration such as 5m, nor manual")


def _analysis(spec: Mapping[str, Any]) -> Analysis:
    return Analysis(
        metrics=tuple(Metric(one["name"], _test(one)) for one in spec.get("metrics", ())),
        interval=spec.get("intervalSeconds", 15),
        warm_up=spec.get("warmUpSeconds", 10),
        minimum_requests=spec.get("minimumRequests", 20),
        failure_limit=spec.get("failureLimit", 0),
        waits=spec.get("onInconclusive", "Wait") == "Wait",
    )


def _test(metric: Mapping[str, Any]) -> ErrorRate | Latency | GateReport | PrometheusQuery:
    if found := metric.get("errorRate"):
        return ErrorRate(found.get("max"), found.get("maxDifference"))
    if found := metric.get("latency"):
        return Latency(
            found.get("of", "TimeToFirstToken"),
            found.get("quantile", 0.95),
            found.get("maxSeconds"),
            found.get("maxRatio"),
        )
    if found := metric.get("gate"):
        return GateReport(found["path"], found.get("min"), found.get("max"))
    if found := metric.get("prometheus"):
        return PrometheusQuery(found["query"], found.get("address", ""), found.get("min"), found.get("max"))
    raise SpecError(f"metric {metric.get('name')!r} is none of errorRate, latency, gate and prometheus")
