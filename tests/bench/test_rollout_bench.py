"""The verdict of `python -m bench.rollout`, and what its numbers mean."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.rollout import simulated
from bench.rollout.load import Attempt
from bench.rollout.real import _account
from bench.rollout.table import failed, show
from tests.k8s.controlplane.cluster import ControlPlane


def real(what: str, failures: int = 0, swaps: tuple[int, ...] = (1, 1, 1)) -> dict[str, Any]:
    replicas = [{"swaps": count, "stall_us": 7.0} for count in swaps]
    attempts = [Attempt(float(i), 0.1, "OK" if i >= failures else "INTERNAL", "v") for i in range(10)]
    return {"what": what, "seconds": [1.5, 2.5], "replicas": replicas} | _account(attempts, 2.0)


def report(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"plan": {"clients": 6, "max_swapping": 10, "swap_seconds": 0.2}, "real": list(rows), "simulated": []}


def test_a_failed_request_fails_the_bench_unless_the_version_was_bad() -> None:
    good, bad = real("5 rollouts"), real("bad version, rolled back", failures=3, swaps=(0, 2, 0))
    assert not failed(report(good, bad))
    assert failed(report(real("5 rollouts", failures=1), bad))


def test_a_bad_version_on_more_than_its_canary_fails_the_bench() -> None:
    assert failed(report(real("bad version, rolled back", swaps=(0, 2, 2))))


def test_an_account_counts_failures_by_code_and_times_only_what_was_answered() -> None:
    attempts = [
        Attempt(0.0, 0.1, "OK", "a", longest_gap=0.02),
        Attempt(0.0, 0.3, "OK", "a", mixed=True, longest_gap=0.2),
        Attempt(0.0, 9.0, "UNAVAILABLE"),
    ]
    found = _account(attempts, 2.0)
    assert (found["requests"], found["failed"], found["mixed_answers"]) == (3, 1, 1)
    assert found["codes"] == {"OK": 2, "UNAVAILABLE": 1}
    assert (found["p50_ms"], found["p99_ms"], found["longest_gap_ms"]) == pytest.approx((300, 300, 200))


def test_the_table_shows_each_row() -> None:
    text = StringIO()
    show(report(real("5 rollouts")), Console(file=text, width=160))
    assert "5 rollouts" in text.getvalue()
    assert "1.5-2.5" in text.getvalue()
    assert "1/1/1" in text.getvalue()


@pytest.mark.parametrize(("replicas", "seconds"), [(10, 3 * 0.2), (100, 10 * 0.2), (1000, 100 * 0.2)])
def test_what_the_swaps_alone_take_is_by_batches_of_ten_in_three_steps(replicas: int, seconds: float) -> None:
    assert simulated._ideal(replicas) == pytest.approx(seconds)


@pytest.mark.e2e
def test_a_simulated_fleet_is_rolled_out_on_a_real_api_server_with_few_calls(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    row = simulated.measure(control_plane, tmp_path, 40, idle_seconds=3.0)
    assert row["seconds"] >= row["ideal_seconds"]
    assert row["status"]["peak"] == 40
    calls = {name: count for name, count in row["api_calls"].items() if count and not name.endswith("leases")}
    assert set(calls) == {"update_status policyrollouts", "patch policyrollouts", "create events"}
    assert sum(calls.values()) < 40  # not one for each replica
    assert not any(count for name, count in row["idle"]["api_calls"].items() if not name.endswith("leases"))
