"""`make bench-log`: what is compared, what counts as lost, and short measurements of the log that needs no broker."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from bench.log.process import Failed, measured
from bench.log.run import STATES, Plan, _middle, ratios
from bench.log.stutter import Stutter
from bench.log.table import failed


def row(contender: str, rate: float, threads: int = 1, batch: int = 1) -> dict[str, Any]:
    return {"contender": contender, "threads": threads, "batch": batch, "events_per_s": rate}


def test_ours_is_held_against_bare_kafka_python_at_the_same_load() -> None:
    rows = [row("sqlite", 9000), row("kafka", 900), row("kafka-python", 1000)]
    rows += [row("kafka", 300, 8, 100), row("kafka-python", 400, 8, 100)]
    assert ratios(rows) == [
        {"threads": 1, "batch": 1, "ratio": 0.9},
        {"threads": 8, "batch": 100, "ratio": 0.75},
    ]


def test_rounds_give_their_median_and_all_their_events() -> None:
    runs = [{"events_per_s": rate, "acknowledged": 10, "stored": 10} for rate in (5.0, 100.0, 7.0)]
    assert _middle(runs) == {"events_per_s": 7.0, "acknowledged": 30, "stored": 30, "lowest": 5.0, "highest": 100.0}


@pytest.mark.parametrize(("stored", "verdict"), [(30, False), (29, True), (31, True)])
def test_an_event_lost_or_repeated_is_a_failure(stored: int, verdict: bool) -> None:
    good, other = {"acknowledged": 5, "stored": 5}, {"acknowledged": 30, "stored": stored}
    assert failed({"append": [good, other], "outbox": [good]}) is verdict
    assert failed({"append": [good], "outbox": [good, other]}) is verdict


@pytest.mark.parametrize("batch", [1, 10])
def test_threads_append_to_sqlite_and_all_of_it_is_there(tmp_path: Path, batch: int) -> None:
    job = {"contender": "sqlite", "threads": 2, "batch": batch, "seconds": 0.4, "url": f"sqlite://{tmp_path}/log.db"}
    found = measured({"kind": "append", **job})
    assert found["acknowledged"] == found["stored"] > batch
    assert found["events_per_s"] > 0
    assert 0 < found["append_p50_ms"] <= found["append_p99_ms"]
    assert found["rss_mb"] > 10


def test_the_outbox_brings_all_it_took(tmp_path: Path) -> None:
    job = {"threads": 2, "fsync": "interval", "count": 300}
    found = measured(
        {"kind": "outbox", **job, "url": f"sqlite://{tmp_path}/log.db", "folder": str(tmp_path / "outbox")}
    )
    assert found["acknowledged"] == found["stored"] == 301
    assert found["accepted_per_s"] >= found["events_per_s"] > 0


def test_an_answers_end_is_timed_from_when_the_log_is_known(tmp_path: Path) -> None:
    met = []
    job = {"fsync": "always", "rate": 100.0, "answers": 50}
    url, folder = f"sqlite://{tmp_path}/log.db", str(tmp_path / "outbox")
    found = measured({"kind": "answer", **job, "url": url, "folder": folder}, lambda: met.append(1))
    assert met == [1]
    assert found["answers"] == 50
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]


def test_a_measurement_that_fails_says_why(tmp_path: Path) -> None:
    job = {"contender": "sqlite", "threads": 1, "batch": 1, "seconds": 0.1, "url": "sqlite:relative"}
    with pytest.raises(Failed, match="needs an absolute path"):
        measured({"kind": "append", **job})


class Broker:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")


def test_a_slow_broker_sleeps_and_wakes_and_is_left_awake() -> None:
    broker = Broker()
    stutter = Stutter(broker)  # type: ignore[arg-type]
    stutter.start()
    time.sleep(0.6)
    stutter.stop()
    assert len(broker.calls) >= 4
    assert broker.calls == ["pause", "resume"] * (len(broker.calls) // 2)
    Stutter(broker).stop()  # type: ignore[arg-type]


def test_what_an_answer_waits_for_each_state_of_the_log_has_a_p99_of_more_than_a_few_samples() -> None:
    assert Plan.answers >= 2000
    assert "slow" in STATES
