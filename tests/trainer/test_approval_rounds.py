"""A round whose candidate the gate approved waits for the rollout, and learns from how it ends."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import REGISTRY

from anyloop.registry import Announcements, announce
from tests.trainer.fake_services import BASE
from tests.trainer.loop import Loop, states
from tests.trainer.processes import start_learner
from tests.trainer.test_fault_points import check_once, died, environment
from trainer.fault_points import FaultPoint
from trainer.handover import await_rollout

FIRST = "policy-000001"


@contextmanager
def rollouts(loop: Loop, ending: str = "promoted", version: str = "") -> Iterator[None]:
    """A gate that approves, and beside it what ends each rollout."""
    stop = threading.Event()

    def end() -> None:
        announcements = Announcements(loop.log)
        while not stop.wait(0.05):
            if approved := announcements.approved("policy"):
                decided_by = "rollout/prod/main" if not version else "anna"
                announce(loop.log, "policy", version or approved, ending, reason="as seen", decided_by=decided_by)

    gate = loop.gate(promotion="rollout", resamples=100)
    threads = [threading.Thread(target=gate.run, args=(stop,)), threading.Thread(target=end)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def delays() -> float:
    return REGISTRY.get_sample_value("anyloop_feedback_to_serving_seconds_count") or 0.0


def test_a_promotion_at_the_end_of_the_rollout_is_the_outcome_and_counts_as_serving(loop: Loop) -> None:
    loop.say(6)
    before = delays()
    with rollouts(loop):
        assert loop.learner().once()
    (line,) = loop.journal("round")
    assert (line["outcome"], line["metrics"]["reason"]) == ("promoted", "as seen")
    assert {"gate", "rollout", "policy_swap"} <= line["seconds"].keys()
    assert delays() == before + 6
    assert states(loop.log, "policy")[-3:] == [(FIRST, "CANDIDATE"), (FIRST, "APPROVED"), (FIRST, "PROMOTED")]


def test_a_rollback_is_a_rejection_and_nothing_counts_as_serving(loop: Loop) -> None:
    loop.say(6)
    before = delays()
    with rollouts(loop, "rejected"):
        assert loop.learner().once()
    (line,) = loop.journal("round")
    assert (line["outcome"], line["metrics"]["reason"]) == ("rejected", "as seen")
    assert delays() == before


def test_an_operator_who_promotes_another_version_ends_the_wait(loop: Loop) -> None:
    loop.say(6)
    before = delays()
    with rollouts(loop, "promoted", BASE):
        assert loop.learner(rollout_timeout_s=30).once()
    (line,) = loop.journal("round")
    assert line["outcome"] == "approved"
    assert line["total_seconds"] < 25
    assert delays() == before


def test_a_rollout_that_does_not_end_holds_learning_up_only_so_long_and_keeps_its_files(loop: Loop) -> None:
    stop = threading.Event()
    gate = threading.Thread(target=loop.gate(promotion="rollout", resamples=100).run, args=(stop,))
    gate.start()
    try:
        loop.say(6)
        assert loop.learner(rollout_timeout_s=0.1, keep_checkpoints=2).once()
        assert Announcements(loop.log).approved("policy") == FIRST
        for _ in range(3):  # the gate rejects these: no better than what is approved
            loop.say(6)
            assert loop.learner(rollout_timeout_s=0.1, keep_checkpoints=2).once()
    finally:
        stop.set()
        gate.join(30)
    assert [line["outcome"] for line in loop.journal("round")] == ["approved", "rejected", "rejected", "rejected"]
    loop.registry.verify(FIRST)  # a rollout may still need it
    assert "policy-000002" not in loop.registry.versions("policy")


@pytest.mark.parametrize("fault", [pytest.param("gate_decided", marks=pytest.mark.slow), "rollout_decided"])
def test_a_learner_killed_in_the_rollout_goes_on_where_it_was(fault: str, loop: Loop) -> None:
    assert FaultPoint(fault)
    loop.say(6)
    with rollouts(loop):
        assert died(start_learner(environment(loop), fault)), "the point was not reached"
        assert not died(start_learner(environment(loop)))
    check_once(loop, [])
    assert [state for version, state in states(loop.log, "policy") if version == FIRST] == [
        "CANDIDATE",
        "APPROVED",
        "PROMOTED",
    ]


def test_a_decision_that_comes_between_two_looks_is_seen(loop: Loop) -> None:
    """The look at what waits comes first: else a promotion after the look at decisions would count as overtaken."""
    announce(loop.log, "policy", FIRST, "approved")
    announcements = Announcements(loop.log)
    approved = announcements.approved

    def and_promote(lineage: str) -> str | None:
        found = approved(lineage)
        announce(loop.log, "policy", FIRST, "promoted")
        return found

    announcements.approved = and_promote  # type: ignore[method-assign]
    began = time.monotonic()
    decision = await_rollout(announcements, FIRST, 30)
    assert decision is not None
    assert time.monotonic() - began < 1
