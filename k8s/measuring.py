"""Measures a step: reads the replicas' metrics, asks Prometheus, and remembers what the step's metrics said."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import httpx

from k8s import scrape, verdicts
from k8s.config import ControllerSettings
from k8s.pods import Pod
from k8s.scrape import Sample
from k8s.spec import Analysis, ErrorRate, Latency, Metric, PrometheusQuery
from k8s.verdicts import Measurement, Verdict

logger = logging.getLogger(__name__)

Look = dict[str, tuple[str, Sample]]  # by pod uid: which process, and its counters
Names = dict[str, str]  # what a query may name


class Meter:
    """HTTP to the pods' metrics ports and to Prometheus."""

    def __init__(self, settings: ControllerSettings, client: httpx.AsyncClient) -> None:
        self._settings = settings
        self._client = client
        self._reading = asyncio.Semaphore(settings.concurrency)

    async def look(self, pods: Sequence[Pod], model: str) -> Look:
        """Of the first of them, as many as the setting says; what does not answer is left out."""
        chosen = [pod for pod in pods if pod.metrics_url][: self._settings.scraped_replicas]
        found = await asyncio.gather(*(self._one(pod, model) for pod in chosen))
        return {pod.uid: (pod.incarnation, sample) for pod, sample in zip(chosen, found, strict=True) if sample}

    async def query(self, test: PrometheusQuery, names: Names) -> tuple[float | None, str]:
        """The number, or None and why there is none."""
        base = test.address or self._settings.prometheus_url
        if not base:
            return None, "no Prometheus: give the metric an address, or set ANYLOOP_CONTROLLER_PROMETHEUS_URL"
        query = test.query
        for name, value in names.items():
            query = query.replace(f"$({name})", value)
        token = self._settings.prometheus_token_file
        try:
            headers = {}
            if token is not None and not test.address:
                headers["Authorization"] = f"Bearer {token.read_text(encoding='utf-8').strip()}"
            url = f"{base.rstrip('/')}/api/v1/query"
            answer = await self._client.get(url, params={"query": query}, headers=headers)
            return _number(answer)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return None, f"Prometheus at {base} did not answer: {error!r}"
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            return None, f"{base} does not answer as Prometheus does: {error!r}"

    async def _one(self, pod: Pod, model: str) -> Sample | None:
        async with self._reading:
            try:
                answer = await self._client.get(pod.metrics_url)
                answer.raise_for_status()
                return scrape.read(answer.text, model)
            except (httpx.HTTPError, ValueError) as error:
                logger.info("the metrics of %s could not be read: %r", pod.name, error)
                return None


class StepAnalysis:
    """One step of one run. Counters are compared with those of when it began: what a controller that takes over has
    not seen it begins to count anew, but failed measurements, which stand in the status, stay failed.

    `served_for`: how many seconds its replicas serve the target already. `clock` tells the time of a measurement,
    `elapsed` when it is time for one: a clock that is set neither delays nor repeats them."""

    def __init__(
        self,
        analysis: Analysis,
        meter: Meter,
        served_for: float = 0.0,
        known: Sequence[Measurement] = (),
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._analysis = analysis
        self._meter = meter
        self._clock = clock
        self._elapsed = elapsed
        self._next = elapsed() + max(analysis.warm_up - served_for, 0.0)
        self._before: dict[str, tuple[Look, Look]] = {}  # by metric: the target's replicas, the stable ones
        self.measurements = {one.name: one for one in known}

    @property
    def next_in(self) -> float:
        """Seconds until it is time to measure again."""
        return self._next - self._elapsed()

    @property
    def verdict(self) -> verdicts.Step:
        return verdicts.of_step(self._analysis, self.measurements)

    async def measure(self, target: Sequence[Pod], stable: Sequence[Pod] | None, model: str, names: Names) -> None:
        """Measures when it is time to. `stable` None: the step leaves no replica to compare with; one that only does
        not answer is waited for."""
        now = self._elapsed()
        if now < self._next or not self._analysis.live:
            return
        self._next = now + self._analysis.interval
        looks = await self._meter.look(target, model), await self._meter.look(stable or (), model)
        for metric in self._analysis.live:
            if isinstance(metric.test, PrometheusQuery):
                self._keep(verdicts.of_query(metric.name, metric.test, *await self._meter.query(metric.test, names)))
            elif metric.name in self._before:
                self._compare(metric, looks, stable is not None)
            else:
                self._before[metric.name] = looks

    def _compare(self, metric: Metric, looks: tuple[Look, Look], has_stable: bool) -> None:
        before = self._before[metric.name]
        target = _added(before[0], looks[0])
        stable = _added(before[1], looks[1]) if has_stable else None
        minimum = self._analysis.minimum_requests
        if isinstance(metric.test, ErrorRate):
            found = verdicts.of_errors(metric.name, metric.test, target, stable, minimum)
        elif isinstance(metric.test, Latency):
            found = verdicts.of_latency(metric.name, metric.test, target, stable, minimum)
        else:
            return
        if found.verdict is not Verdict.INCONCLUSIVE:
            self._before[metric.name] = looks
        else:  # a replica that came since is counted from now on
            self._before[metric.name] = (
                {**looks[0], **_same(before[0], looks[0])},
                {**looks[1], **_same(before[1], looks[1])},
            )
        self._keep(found)

    def _keep(self, found: Measurement) -> None:
        last = self.measurements.get(found.name)
        self.measurements[found.name] = replace(
            found,
            at=self._clock(),
            failures=(last.failures if last else 0) + (found.verdict is Verdict.FAILED),
            passes=(last.passes if last else 0) + (found.verdict is Verdict.PASSED),
        )


def _same(before: Look, now: Look) -> Look:
    """Of the processes that are still the same."""
    return {uid: seen for uid, seen in before.items() if uid in now and now[uid][0] == seen[0]}


def _added(before: Look, now: Look) -> Sample:
    kept = _same(before, now)
    return scrape.total(now[uid][1].since(sample) for uid, (_, sample) in kept.items())


def _number(answer: httpx.Response) -> tuple[float | None, str]:
    document = answer.json()
    if answer.status_code >= 400 or document.get("status") != "success":
        return None, f"Prometheus refused the query: {document.get('error', answer.status_code)}"
    kind, result = document["data"]["resultType"], document["data"]["result"]
    if kind == "scalar":
        values = [result]
    elif kind == "vector":
        values = [one["value"] for one in result]
    else:
        return None, f"the query gives a {kind}: it must give one number"
    if len(values) != 1:
        return None, f"the query gives {len(values)} values: it must give one"
    value = float(values[0][1])
    return (None, "the query's result is not a number") if math.isnan(value) else (value, "")
