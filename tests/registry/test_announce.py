import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from anyloop.log import CHECKPOINTS, Event, EventLog, LogError, Record
from anyloop.log.sqlite_log import SqliteLog
from anyloop.registry import Announcements, CheckpointWatcher, announce, checkpoint_events, serving_version
from anyloop.registry.announce import APPROVED, CANDIDATE, PROMOTED, REJECTED
from protos.anyloop.v1 import events_pb2


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with SqliteLog(tmp_path / "log.db") as opened:
        opened.ensure_topics()
        yield opened


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def test_before_any_promotion_nothing_serves(log: EventLog) -> None:
    announce(log, "policy", "policy-000001", CANDIDATE)
    assert serving_version(log, "policy") is None


def test_the_newest_promotion_of_the_lineage_serves_and_going_back_is_a_promotion(log: EventLog) -> None:
    announce(log, "policy", "policy-000000", PROMOTED)
    announce(log, "policy", "policy-000001", PROMOTED)
    announce(log, "critique", "critique-000007", PROMOTED)
    announce(log, "policy", "policy-000002", REJECTED)
    assert serving_version(log, "policy") == "policy-000001"
    announce(log, "policy", "policy-000000", PROMOTED, decided_by="alice", reason="rollback")
    assert serving_version(log, "policy") == "policy-000000"
    assert serving_version(log, "critique") == "critique-000007"


def test_an_announcement_says_everything_it_was_given(log: EventLog) -> None:
    announce(
        log,
        "policy",
        "policy-000001",
        "rejected",
        parent="policy-000000",
        digest="d",
        reason="t2i fell by 9 points",
        decided_by="gate",
        report={"mean": 0.5},
    )
    ((offset, message),) = checkpoint_events(log, "policy")
    assert offset == 0
    assert (message.lineage, message.version, message.parent) == ("policy", "policy-000001", "policy-000000")
    assert (message.state, message.digest) == (REJECTED, "d")
    assert (message.reason, message.decided_by) == ("t2i fell by 9 points", "gate")
    assert json.loads(message.report_json) == {"mean": 0.5}
    assert abs(message.created_unix_ms - time.time() * 1000) < 60_000
    (record,) = log.read(CHECKPOINTS)
    assert record.event.key == "policy-000001"  # compaction keeps the newest announcement of each version


def test_an_announcement_that_cannot_be_read_hides_no_other(log: EventLog) -> None:
    announce(log, "policy", "policy-000001", PROMOTED)
    log.append(CHECKPOINTS, poison())
    announce(log, "policy", "policy-000002", PROMOTED)
    assert [offset for offset, _ in checkpoint_events(log)] == [0, 2]
    assert serving_version(log, "policy") == "policy-000002"


def poison() -> Event:
    return Event("e", "tests", "anyloop.v1.CheckpointEvent", datetime.now(UTC), "k", b"\xff")


def test_an_unknown_state_is_refused(log: EventLog) -> None:
    with pytest.raises(ValueError):
        announce(log, "policy", "v", "wonderful")


class TestWatcher:
    def test_begins_with_the_newest_of_each_lineage_and_goes_on_with_all(self, log: EventLog) -> None:
        seen: list[str] = []
        announce(log, "policy", "policy-000000", PROMOTED)
        announce(log, "critique", "critique-000000", PROMOTED)
        announce(log, "policy", "policy-000001", PROMOTED)
        with CheckpointWatcher(log, lambda event: seen.append(event.version)):
            until(lambda: len(seen) == 2)
            assert seen == ["critique-000000", "policy-000001"]
            announce(log, "policy", "policy-000002", PROMOTED)
            announce(log, "policy", "policy-000003", CANDIDATE)
            announce(log, "policy", "policy-000001", PROMOTED)
            until(lambda: len(seen) == 4)
        assert seen[2:] == ["policy-000002", "policy-000001"]

    def test_shows_only_the_lineages_and_states_asked_for(self, log: EventLog) -> None:
        seen: list[str] = []
        watcher = CheckpointWatcher(
            log, lambda event: seen.append(event.version), lineages=["policy"], states=[CANDIDATE], from_latest=False
        )
        for number in range(2):
            announce(log, "critique", f"critique-{number}", CANDIDATE)
            announce(log, "policy", f"policy-{number}", CANDIDATE)
            announce(log, "policy", f"policy-{number}", REJECTED)
        with watcher:
            until(lambda: len(seen) == 2)
        assert seen == ["policy-0", "policy-1"]

    def test_a_failing_callback_and_a_poisonous_announcement_do_not_end_it(self, log: EventLog) -> None:
        seen: list[str] = []

        def callback(event: events_pb2.CheckpointEvent) -> None:
            seen.append(event.version)
            if event.version == "bad":
                raise RuntimeError("swap failed")

        with CheckpointWatcher(log, callback) as watcher:
            announce(log, "policy", "bad", PROMOTED)
            log.append(CHECKPOINTS, poison())
            announce(log, "policy", "good", PROMOTED)
            until(lambda: "good" in seen)
            assert watcher.alive
            assert watcher.failure is None

    def test_waits_for_a_log_that_is_away(self, log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("anyloop.registry.watcher._RETRY_SECONDS", 0.05)
        announce(log, "policy", "policy-000001", PROMOTED)
        back = threading.Event()
        real = log.end_offsets

        def end_offsets(topic: str) -> dict[int, int]:
            if not back.is_set():
                raise LogError("away", retriable=True)
            return real(topic)

        monkeypatch.setattr(log, "end_offsets", end_offsets)
        seen: list[str] = []
        with CheckpointWatcher(log, lambda event: seen.append(event.version)) as watcher:
            time.sleep(0.2)
            assert watcher.alive
            back.set()
            until(lambda: seen == ["policy-000001"])

    def test_follows_a_topic_that_was_made_anew(
        self, log: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[str] = []
        announce(log, "policy", "old", PROMOTED)
        announce(log, "policy", "older", PROMOTED)
        with (
            CheckpointWatcher(log, lambda event: seen.append(event.version), from_latest=False),
            SqliteLog(tmp_path / "anew.db") as anew,
        ):
            until(lambda: seen == ["old", "older"])
            anew.ensure_topics()
            announce(anew, "policy", "new", PROMOTED)
            monkeypatch.setattr(log, "read", anew.read)
            monkeypatch.setattr(log, "end_offsets", anew.end_offsets)
            until(lambda: seen == ["old", "older", "new"])
            monkeypatch.undo()

    def test_says_why_it_stopped(self, tmp_path: Path) -> None:
        log = SqliteLog(tmp_path / "closed.db")
        log.ensure_topics()
        watcher = CheckpointWatcher(log, lambda event: None).start()
        until(lambda: watcher.alive)
        log.close()
        until(lambda: not watcher.alive)
        assert isinstance(watcher.failure, LogError)
        watcher.close()


class TestAnnouncements:
    def test_each_look_reads_only_what_was_added(self, log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
        reads: list[int] = []
        real = log.read

        def read(topic: str, **where: Any) -> Iterator[Record]:
            reads.append(where["offset"])
            return real(topic, **where)

        monkeypatch.setattr(log, "read", read)
        announcements = Announcements(log)
        assert announcements.serving("policy") is None
        announce(log, "policy", "policy-000000", PROMOTED)
        announce(log, "critique", "critique-000000", PROMOTED)
        for _ in range(3):
            assert announcements.serving("policy") == "policy-000000"
        announce(log, "policy", "policy-000001", CANDIDATE)
        assert announcements.announced("policy", "policy-000001")
        assert not announcements.announced("critique", "policy-000001")
        assert reads == [0, 2]

    def test_a_candidate_announced_again_stays_decided(self, log: EventLog) -> None:
        announcements = Announcements(log)
        for version, state in (("a", CANDIDATE), ("b", CANDIDATE), ("a", REJECTED), ("a", CANDIDATE), ("b", CANDIDATE)):
            announce(log, "policy", version, state)
        assert [event.version for event in announcements.undecided("policy")] == ["b"]
        decided = announcements.decision("policy", "a")
        assert decided is not None
        assert decided.state == REJECTED
        assert announcements.decision("policy", "b") is None

    def test_a_topic_made_anew_is_read_from_its_start(self, log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
        announcements = Announcements(log)
        announce(log, "policy", "old", PROMOTED)
        announce(log, "policy", "older", PROMOTED)
        assert announcements.promotions("policy") == ["old", "older"]
        with SqliteLog(Path(str(log._path) + ".new")) as made_anew:  # type: ignore[attr-defined]
            made_anew.ensure_topics()
            announce(made_anew, "policy", "new", PROMOTED)
            monkeypatch.setattr(log, "read", made_anew.read)
            monkeypatch.setattr(log, "end_offsets", made_anew.end_offsets)
            assert announcements.promotions("policy") == ["new"]

    def test_an_approval_is_a_verdict_and_no_decision(self, log: EventLog) -> None:
        announcements = Announcements(log)
        announce(log, "policy", "a", CANDIDATE)
        announce(log, "policy", "a", APPROVED)
        assert announcements.undecided("policy") == []
        assert announcements.decision("policy", "a") is None
        verdict = announcements.verdict("policy", "a")
        assert verdict is not None
        assert verdict.state == APPROVED
        assert serving_version(log, "policy") is None
        announce(log, "policy", "a", PROMOTED)
        decided = announcements.decision("policy", "a")
        assert decided is not None
        assert decided.state == PROMOTED

    @pytest.mark.parametrize(
        ("said", "waits"),
        [
            pytest.param([("a", APPROVED)], "a", id="approved"),
            pytest.param([("a", APPROVED), ("a", PROMOTED)], None, id="rolled-out"),
            pytest.param([("a", APPROVED), ("a", REJECTED)], None, id="rolled-back"),
            pytest.param([("a", APPROVED), ("b", PROMOTED)], None, id="operator-promotes-another"),
            pytest.param([("a", APPROVED), ("b", REJECTED)], "a", id="another-is-rejected"),
            pytest.param([("a", APPROVED), ("b", APPROVED)], "b", id="overtaken"),
            pytest.param([("a", APPROVED), ("b", APPROVED), ("a", REJECTED)], "b", id="overtaken-then-rejected"),
            pytest.param([("b", PROMOTED), ("a", APPROVED)], "a", id="after-an-earlier-promotion"),
        ],
    )
    def test_at_most_one_version_waits_for_its_rollout(
        self, log: EventLog, said: list[tuple[str, int]], waits: str | None
    ) -> None:
        for version, state in said:
            announce(log, "policy", version, state)
        announce(log, "critique", "c", PROMOTED)
        assert Announcements(log).approved("policy") == waits
