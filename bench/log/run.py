"""One run: throughput of each contender, of the outbox in front of the log, and what an answer waits for it."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from anyloop.cli.kafka.broker import LocalBroker
from bench.log.contenders import EVENT_BYTES, PARTITIONS
from bench.log.disk import syncs_per_second
from bench.log.process import measured, rss_mb
from bench.log.stutter import Stutter

RATIO_TARGET = 0.8  # ours to bare kafka-python
STATES = ("sqlite", "up", "slow", "paused", "away")  # of the log, while answers end
LATENCY_TARGET_MS = 2.0  # p99 of what recording adds to an answer's end


@dataclass(frozen=True)
class Plan:
    rounds: int = 3  # contenders take turns in each; the median counts
    seconds: float = 1.5  # of one measurement of appends
    batch: int = 100  # events of an append_many
    outbox_events: int = 10_000
    rate: float = 200.0  # answers that end each second
    answers: int = 2_200  # of each state of the log: 22 of them lie above the p99
    out: Path = Path("bench-out")


def measure(plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """The report. A measurement that fails raises; a target that is missed stands in the report."""
    home = plan.out / "log-home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    with LocalBroker(home / "kafka") as broker:
        bench = _Bench(plan, broker, home.absolute(), say)
        report = {
            "plan": {**asdict(plan), "out": str(plan.out), "event_bytes": EVENT_BYTES, "partitions": PARTITIONS},
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "fsyncs_per_s": syncs_per_second(home, min(2.0, plan.seconds)),
            "append": bench.append(),
            "outbox": bench.outbox(),
            "answer": bench.answer(),
            "broker_rss_mb": bench.broker_mb,
        }
    shutil.rmtree(home, ignore_errors=True)
    return report | {"ratios": ratios(report["append"])}


class _Bench:
    def __init__(self, plan: Plan, broker: LocalBroker, home: Path, say: Callable[[str], None]) -> None:
        self._plan, self._broker, self._home, self._say = plan, broker, home, say
        self._numbers = itertools.count()
        self.broker_mb = 0.0

    def append(self) -> list[dict[str, Any]]:
        plan, rows = self._plan, []
        for threads, batch in ((1, 1), (8, 1), (1, plan.batch), (8, plan.batch)):
            found: dict[str, list[dict[str, Any]]] = {}
            for number in range(plan.rounds):
                for contender in ("sqlite", "kafka", "kafka-python"):
                    self._say(f"append, {contender}, {threads} threads, {batch} at a time, round {number + 1}")
                    job = {"contender": contender, "threads": threads, "batch": batch, "seconds": plan.seconds}
                    url = self._url("sqlite" if contender == "sqlite" else "kafka")
                    found.setdefault(contender, []).append(measured({"kind": "append", **job, "url": url}))
                    self.broker_mb = max(self.broker_mb, rss_mb(self._broker.pid or 0))
            for contender, runs in found.items():
                rows.append({"contender": contender, "threads": threads, "batch": batch, **_middle(runs)})
        return rows

    def outbox(self) -> list[dict[str, Any]]:
        plan, rows = self._plan, []
        for log, fsync in itertools.product(("sqlite", "kafka"), ("always", "interval")):
            runs = []
            for number in range(plan.rounds):
                self._say(f"outbox, {log}, fsync {fsync}, round {number + 1}")
                job = {"threads": 8, "fsync": fsync, "count": plan.outbox_events}
                runs.append(measured({"kind": "outbox", **job, "url": self._url(log), "folder": self._folder()}))
            rows.append({"log": log, "fsync": fsync, **_middle(runs)})
        return rows

    def answer(self) -> list[dict[str, Any]]:
        plan = self._plan
        self._say("an answer's end, nothing recorded")
        nothing = measured({"kind": "floor", "rate": plan.rate, "answers": plan.answers})
        rows = [{"log": "nothing recorded", "fsync": "", **nothing}]
        for state, fsync in itertools.product(STATES, ("always", "interval")):
            self._say(f"an answer's end, log {state}, fsync {fsync}")
            job = {"fsync": fsync, "rate": plan.rate, "answers": plan.answers}
            url = self._url("sqlite" if state == "sqlite" else "kafka")
            with self._trouble(state) as begin:
                found = measured({"kind": "answer", **job, "url": url, "folder": self._folder()}, begin)
            rows.append({"log": state if state == "sqlite" else f"kafka {state}", "fsync": fsync, **found})
        return rows

    @contextmanager
    def _trouble(self, state: str) -> Iterator[Callable[[], None]]:
        """Yields what brings the trouble about; it is over at the end."""
        broker, stutter = self._broker, Stutter(self._broker)
        try:
            yield {"slow": stutter.start, "paused": broker.pause, "away": broker.kill}.get(state, lambda: None)
        finally:
            stutter.stop()
            if state == "paused":
                broker.resume()
            elif state == "away":
                broker.start()

    def _url(self, log: str) -> str:
        """A new, empty log."""
        number = next(self._numbers)
        if log == "sqlite":
            return f"sqlite://{self._home}/{number}.db"
        return f"kafka://{self._broker.address}/bench-{number}."

    def _folder(self) -> str:
        return str(self._home / f"outbox-{next(self._numbers)}")


def _middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure; acknowledged and stored events are added up, for none may be lost in any run."""
    sums = ("acknowledged", "stored")
    figures = {name: median(run[name] for run in runs) for name in runs[0] if name not in sums}
    rates = [run["events_per_s"] for run in runs]
    return (
        figures
        | {name: sum(run[name] for run in runs) for name in sums}
        | {"lowest": min(rates), "highest": max(rates)}
    )


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events/s of our log on Kafka to those of bare kafka-python."""
    rate = {(row["contender"], row["threads"], row["batch"]): row["events_per_s"] for row in rows}
    return [
        {"threads": threads, "batch": batch, "ratio": value / rate["kafka-python", threads, batch]}
        for (contender, threads, batch), value in rate.items()
        if contender == "kafka"
    ]
