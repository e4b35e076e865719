import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from anyloop import audit
from anyloop.log import AUDIT, CHECKPOINTS, Event, EventLog, LogError, TopicSpec, open_log
from anyloop.registry import announce
from anyloop.telemetry.metrics import AUDIT_FAILURES


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with open_log(f"sqlite://{tmp_path}/log.db") as log:
        log.ensure_topics()
        yield log


def entries(log: EventLog) -> list[tuple[str, str, str, str]]:
    return [(one.action, one.subject, one.actor, one.outcome) for _, one in audit.audit_events(log)]


def test_an_entry_says_who_did_what_to_what_why_and_where(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit.socket, "gethostname", lambda: "ops-1")
    written = audit.record(
        log, action="rollout.pause", subject="prod/main", actor="anna@ops-1", reason="lunch", details={"step": 2}
    )
    assert written
    ((record, entry),) = audit.audit_events(log)
    assert (entry.action, entry.subject, entry.actor) == ("rollout.pause", "prod/main", "anna@ops-1")
    assert (entry.reason, entry.outcome, entry.host) == ("lunch", "done", "ops-1")
    assert json.loads(entry.details_json) == {"step": 2}
    assert (record.event.key, record.event.source, record.event.id) == ("prod/main", "audit/anna@ops-1", entry.audit_id)


def test_every_decision_about_a_checkpoint_is_in_the_trail_and_a_candidate_is_none(log: EventLog) -> None:
    announce(log, "policy", "policy-000001", "candidate", decided_by="trainer")
    announce(log, "policy", "policy-000001", "approved", decided_by="gate")
    announce(log, "policy", "policy-000001", "promoted", decided_by="rollout/prod/main")
    announce(log, "policy", "policy-000002", "rejected", decided_by="gate")
    announce(log, "policy", "policy-000000", "promoted", decided_by="anna@ops-1", action="rollback")
    assert entries(log) == [
        ("approve", "policy-000001", "gate", "done"),
        ("promote", "policy-000001", "rollout/prod/main", "done"),
        ("reject", "policy-000002", "gate", "done"),
        ("rollback", "policy-000000", "anna@ops-1", "done"),
    ]


def test_the_same_act_said_twice_counts_once(log: EventLog) -> None:
    for _ in range(2):
        announce(log, "policy", "policy-000001", "promoted", decided_by="gate", audit_id="gate/policy-000001")
    assert entries(log) == [("promote", "policy-000001", "gate", "done")]
    assert log.end_offsets(AUDIT) == {0: 2}


def test_a_decision_that_the_log_did_not_take_is_said_to_have_failed_and_to_be_done_when_it_is(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = log.append

    def full(topic: str, event: Event) -> object:
        if topic == CHECKPOINTS:
            raise LogError("the disk is full", retriable=True)
        return append(topic, event)

    promote = partial(announce, log, "policy", "policy-000001", "promoted", decided_by="gate", audit_id="gate/1")
    with monkeypatch.context() as patch:
        patch.setattr(log, "append", full)
        with pytest.raises(LogError, match="full"):
            promote()
        with pytest.raises(LogError, match="full"):
            announce(log, "policy", "policy-000002", "candidate")
    act = ("promote", "policy-000001", "gate")
    assert entries(log) == [(*act, "done"), (*act, "failed")]
    assert "the disk is full" in [one.reason for _, one in audit.audit_events(log)][-1]
    promote()
    assert entries(log) == [(*act, "done"), (*act, "failed"), (*act, "done")]


def test_who_goes_on_reading_later_is_told_nothing_twice_and_misses_nothing(log: EventLog) -> None:
    for subject in ("a", "b"):
        audit.record(log, action="promote", subject=subject, actor="gate", audit_id=subject)
    seen: dict[str, str] = {}
    assert [one.subject for _, one in audit.audit_events(log, end=1, seen=seen)] == ["a"]
    audit.record(log, action="promote", subject="a", actor="gate", audit_id="a")
    assert [one.subject for _, one in audit.audit_events(log, offset=1, seen=seen)] == ["b"]


def test_without_its_topic_the_act_goes_on_and_the_entry_stands_in_the_process_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = AUDIT_FAILURES._value.get()
    with open_log(f"sqlite://{tmp_path}/old.db") as old:  # made by a release without an audit trail
        old.ensure_topics([TopicSpec(CHECKPOINTS, 1, True)])
        announce(old, "policy", "policy-000001", "promoted", decided_by="gate", reason="better")
        assert old.end_offsets(CHECKPOINTS) == {0: 1}
    (line,) = [one for one in caplog.records if one.name == "anyloop.audit"]
    assert line.levelno == logging.ERROR
    assert "audit: gate promote policy-000001, done: better" in line.getMessage()
    assert AUDIT_FAILURES._value.get() == before + 1


def test_every_entry_is_a_line_of_the_process_log_too(log: EventLog, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "anyloop.audit"):
        audit.record(log, action="keys.reload", subject="keys.toml", actor="gateway", outcome="failed")
    assert caplog.messages == ["audit: gateway keys.reload keys.toml, failed"]


def test_an_unreadable_entry_hides_no_other(log: EventLog) -> None:
    audit.record(log, action="promote", subject="a", actor="x")
    log.append(AUDIT, Event("e", "tests", "anyloop.v1.AuditEvent", datetime.now(UTC), "k", b"\xff"))
    audit.record(log, action="promote", subject="b", actor="x")
    assert [one.subject for _, one in audit.audit_events(log)] == ["a", "b"]
    assert [one.subject for _, one in audit.audit_events(log, offset=1)] == ["b"]


def test_the_trail_is_one_partition_that_nothing_compacts_or_forgets() -> None:
    from anyloop.log.topics import standard_topics

    (spec,) = [one for one in standard_topics(12, retention_hours=1) if one.name == AUDIT]
    assert (spec.partitions, spec.compacted, spec.retention_hours) == (1, False, None)


def test_an_operator_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("uid not found: 10001")

    monkeypatch.setattr(audit.getpass, "getuser", nobody)
    monkeypatch.setattr(audit.os, "getuid", lambda: 10001)
    monkeypatch.setattr(audit.socket, "gethostname", lambda: "pod-7")
    assert audit.operator() == "uid-10001@pod-7"
