"""Rollouts over three real replicas while clients ask: what they notice, and how long it takes."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from anyloop.config import TINY_OMNI
from bench.rollout.controller import Controller, service_account
from bench.rollout.fleet import Fleet
from bench.rollout.kubelet import Kubelet
from bench.rollout.load import Attempt, Load
from bench.rollout.rollouts import Rollouts
from tests.k8s.controlplane.cluster import ControlPlane

REPLICAS, CLIENTS = 3, 6
_BASELINE_SECONDS = 5.0
ANALYSIS = {
    "intervalSeconds": 1,
    "warmUpSeconds": 0,
    "minimumRequests": 10,
    "metrics": [{"name": "errors", "errorRate": {"max": 0.05}}],
}
CANARY = {"type": "Canary", "steps": [{"replicas": 1, "pause": 5}]}


def measure(plane: ControlPlane, folder: Path, rollouts: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for quiet load, for `rollouts` sound versions one after another, a canary, and a bad version."""
    cluster = Rollouts(plane)
    with Fleet(folder / "fleet", TINY_OMNI, REPLICAS) as fleet, Kubelet(plane, cluster.namespace) as kubelet:
        fleet.register(kubelet)
        account = service_account(cluster)
        log_url = fleet.settings.effective_log_url
        with Controller(folder, account, cluster.namespace, log_url, pace={}) as controller:
            controller.await_leading()
            run = _Runs(fleet, cluster)
            with Load(fleet.target, clients=CLIENTS) as load:
                time.sleep(2.0)  # until every replica has answered once
                say("quiet load")
                quiet = _row("no rollout", run, load, lambda: time.sleep(_BASELINE_SECONDS))
                cluster.create("policy", maxSwapping=1)
                say(f"{rollouts} rollouts")
                rows = [_row("rollout", run, load, run.sound) for _ in range(rollouts)]
                cluster.change("policy", {"strategy": CANARY, "analysis": ANALYSIS})
                say("a canary with an analysis")
                canary = _row("canary of 1, 5 s, error rate", run, load, run.sound)
                say("a version that overflows")
                bad = _row("bad version, rolled back", run, load, run.overflowing)
    return [quiet, _together(rows), canary, bad]


class _Runs:
    def __init__(self, fleet: Fleet, cluster: Rollouts) -> None:
        self.fleet = fleet
        self._cluster = cluster

    def sound(self) -> None:
        version = self.fleet.versions.approve(self.fleet.versions.sound())
        self._cluster.until_phase("policy", "Completed", version=version, seconds=120)
        if self.fleet.serving() != [version] * REPLICAS:
            raise RuntimeError(f"after the rollout of {version} the replicas serve {self.fleet.serving()}")

    def overflowing(self) -> None:
        version = self.fleet.versions.approve(self.fleet.versions.overflowing())
        self._cluster.until(
            "policy", lambda status: status.get("history", [{}])[0].get("version") == version, 120, "does not end"
        )
        if self.fleet.serving() != [self.fleet.promoted] * REPLICAS:
            raise RuntimeError(f"after the rollback of {version} the replicas serve {self.fleet.serving()}")


def _row(what: str, runs: _Runs, load: Load, action: Callable[[], None]) -> dict[str, Any]:
    before = _stalls(runs.fleet)
    began = time.monotonic()
    action()
    ended = time.monotonic()
    attempts = [one for one in load.attempts if began <= one.began + one.seconds <= ended]
    stalls = [
        {"swaps": count - known, "stall_us": 1e6 * (total - spent) / max(1.0, count - known)}
        for (count, total), (known, spent) in zip(_stalls(runs.fleet), before, strict=True)
    ]
    return {"what": what, "seconds": [ended - began], "replicas": stalls, "attempts": attempts} | _account(
        attempts, ended - began
    )


def _account(attempts: Sequence[Attempt], seconds: float) -> dict[str, Any]:
    taken = sorted(one.seconds for one in attempts if one.code == "OK")
    gaps = sorted(one.longest_gap for one in attempts if one.code == "OK")
    return {
        "requests": len(attempts),
        "requests_per_second": len(attempts) / seconds,
        "failed": sum(one.code != "OK" for one in attempts),
        "codes": dict(Counter(one.code for one in attempts)),
        "mixed_answers": sum(one.mixed for one in attempts),
        "p50_ms": 1e3 * _quantile(taken, 0.5),
        "p99_ms": 1e3 * _quantile(taken, 0.99),
        "longest_gap_p99_ms": 1e3 * _quantile(gaps, 0.99),
        "longest_gap_ms": 1e3 * (gaps[-1] if gaps else 0.0),
    }


def _together(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    attempts = [one for row in rows for one in row["attempts"]]
    seconds = [second for row in rows for second in row["seconds"]]
    replicas = [
        {
            "swaps": sum(row["replicas"][number]["swaps"] for row in rows),
            "stall_us": max(row["replicas"][number]["stall_us"] for row in rows),
        }
        for number in range(REPLICAS)
    ]
    return {"what": f"{len(rows)} rollouts", "seconds": seconds, "replicas": replicas, "attempts": attempts} | _account(
        attempts, sum(seconds)
    )


def _stalls(fleet: Fleet) -> list[tuple[float, float]]:
    """Changes of weights and the seconds in which no step could run, of each replica."""
    return [
        (
            fleet.metric(number, "anyloop_swap_stall_seconds_count"),
            fleet.metric(number, "anyloop_swap_stall_seconds_sum"),
        )
        for number in range(REPLICAS)
    ]


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
