"""What a replica's /metrics says, as far as an analysis needs it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

SUCCESS = "anyloop_request_success"
FAILURES = "anyloop_request_failures"
HISTOGRAMS = {
    "TimeToFirstToken": "anyloop_time_to_first_token_seconds",
    "InterToken": "anyloop_inter_token_latency_seconds",
    "Response": "anyloop_e2e_request_latency_seconds",
}
_NAMES = (SUCCESS, FAILURES, *HISTOGRAMS.values())
# By the service's fault. The others are the caller's: CANCELLED, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, NOT_FOUND, ...
FAULTS = frozenset({"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "DATA_LOSS", "ABORTED", "UNIMPLEMENTED"})

Buckets = Mapping[float, float]  # upper bound, and how many were at most so much


@dataclass(frozen=True)
class Sample:
    """Counters since the process began, or what was added between two looks."""

    succeeded: float = 0.0
    failed: float = 0.0
    buckets: Mapping[str, Buckets] = field(default_factory=dict)  # by histogram name

    @property
    def requests(self) -> float:
        return self.succeeded + self.failed

    @property
    def error_rate(self) -> float | None:
        return self.failed / self.requests if self.requests else None

    def since(self, before: "Sample") -> "Sample":
        """What was added. A counter that went back began anew."""
        return Sample(
            _added(self.succeeded, before.succeeded),
            _added(self.failed, before.failed),
            {
                name: {
                    bound: _added(count, before.buckets.get(name, {}).get(bound, 0.0)) for bound, count in now.items()
                }
                for name, now in self.buckets.items()
            },
        )

    def count(self, histogram: str) -> float:
        return max(self.buckets.get(histogram, {}).values(), default=0.0)

    def quantile(self, histogram: str, q: float) -> float | None:
        """As Prometheus' histogram_quantile: linear within a bucket, the last finite bound for what is beyond it."""
        buckets = sorted(self.buckets.get(histogram, {}).items())
        total = buckets[-1][1] if buckets else 0.0
        if not total:
            return None
        rank, below, lower = q * total, 0.0, 0.0
        for bound, count in buckets:
            if count >= rank:
                if bound == float("inf"):
                    return lower
                inside = (rank - below) / (count - below) if count > below else 1.0
                return lower + (bound - lower) * inside
            below, lower = count, bound
        return lower


def total(samples: Iterable[Sample]) -> Sample:
    succeeded = failed = 0.0
    buckets: dict[str, dict[float, float]] = {}
    for one in samples:
        succeeded, failed = succeeded + one.succeeded, failed + one.failed
        for name, counts in one.buckets.items():
            into = buckets.setdefault(name, {})
            for bound, count in counts.items():
                into[bound] = into.get(bound, 0.0) + count
    return Sample(succeeded, failed, buckets)


def read(text: str, model: str) -> Sample:
    """The counters of one model. Raises ValueError on what is no metrics page."""
    succeeded = failed = 0.0
    buckets: dict[str, dict[float, float]] = {}
    for family in text_string_to_metric_families("\n".join(_wanted(text)) + "\n"):
        for one in family.samples:
            if one.labels.get("model_name") != model:
                continue
            if one.name == f"{SUCCESS}_total":
                succeeded += one.value
            elif one.name == f"{FAILURES}_total" and one.labels.get("code") in FAULTS:
                failed += one.value
            elif one.name.endswith("_bucket"):
                into = buckets.setdefault(family.name, {})
                bound = float(one.labels["le"])
                into[bound] = into.get(bound, 0.0) + one.value
    return Sample(succeeded, failed, buckets)


def _wanted(text: str) -> Iterator[str]:
    """The lines of the families that are read: the parser takes a millisecond for a page of the others."""
    for line in text.splitlines():
        name = line.removeprefix("# TYPE ").removeprefix("# HELP ")
        if name.startswith(_NAMES):
            yield line


def _added(now: float, before: float) -> float:
    return now - before if now >= before else now
