from collections.abc import Iterator
from pathlib import Path

import pytest

from anyloop.log import EventLog, open_log
from anyloop.registry import announce, checkpoint_events
from anyloop.registry.announce import PROMOTED, REJECTED
from k8s.checkpoints import Checkpoints


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with open_log(f"sqlite:///{tmp_path / 'log.db'}") as found:
        found.ensure_topics()
        announce(found, "policy", "v1", "promoted", decided_by="base", digest="d1")
        yield found


def words(log: EventLog) -> list[tuple[str, int]]:
    return [(event.version, event.state) for _, event in checkpoint_events(log)]


async def test_each_new_word_is_told_by_its_lineage(log: EventLog) -> None:
    told: list[str] = []
    checkpoints = Checkpoints(log, told.append)
    await checkpoints.refresh()
    await checkpoints.refresh()
    announce(log, "critique", "c1", "promoted", decided_by="trainer")
    await checkpoints.refresh()
    assert told == ["policy", "critique"]
    assert checkpoints.lineage("policy").stable == "v1"


async def test_the_newest_approval_overtakes_those_before_it_and_a_promotion_overtakes_all(log: EventLog) -> None:
    checkpoints = Checkpoints(log, lambda _: None)
    announce(log, "policy", "v2", "approved", decided_by="gate")
    announce(log, "policy", "v3", "approved", decided_by="gate")
    await checkpoints.refresh()
    policy = checkpoints.lineage("policy")
    assert policy.approved is not None
    assert policy.approved.version == "v3"
    assert list(policy.overtaken) == ["v2"]
    announce(log, "policy", "v4", "promoted", decided_by="joe")
    await checkpoints.refresh()
    assert policy.approved is None
    assert list(policy.overtaken) == ["v2", "v3"]


async def test_a_promotion_is_announced_once_with_what_the_gate_said(log: EventLog) -> None:
    announce(log, "policy", "v2", "approved", parent="v1", digest="d2", decided_by="gate", report={"after": 0.9})
    checkpoints = Checkpoints(log, lambda _: None)
    for _ in range(2):
        await checkpoints.promote("policy", "v2", by="rollout/shop/policy", reason="all serve it", audit_id="a")
    assert words(log)[2:] == [("v2", PROMOTED)]
    assert checkpoints.lineage("policy").report("v2") == {"after": 0.9}
    event = checkpoints.lineage("policy").newest["v2"]
    assert (event.parent, event.digest, event.decided_by) == ("v1", "d2", "rollout/shop/policy")


async def test_what_serves_is_never_rejected_nor_what_nobody_knows_nor_anything_twice(log: EventLog) -> None:
    announce(log, "policy", "v2", "approved", decided_by="gate")
    checkpoints = Checkpoints(log, lambda _: None)
    for version in ("v1", "v9", "v2", "v2"):
        await checkpoints.reject("policy", version, by="rollout/shop/policy", reason="bad", audit_id=version)
    assert words(log)[2:] == [("v2", REJECTED)]


async def test_a_version_that_failed_again_is_rejected_again_and_once(log: EventLog) -> None:
    announce(log, "policy", "v2", "approved", decided_by="gate")
    checkpoints = Checkpoints(log, lambda _: None)
    await checkpoints.reject("policy", "v2", by="rollout/shop/policy", reason="bad", audit_id="1")
    tried_again = checkpoints.lineage("policy").offset
    for _ in range(2):
        by = "rollout/shop/policy"
        await checkpoints.reject("policy", "v2", by=by, reason="still bad", audit_id="2", after=tried_again)
    assert words(log)[2:] == [("v2", REJECTED)] * 2
    assert checkpoints.lineage("policy").newest["v2"].reason == "still bad"


async def test_a_promotion_of_what_is_promoted_has_a_place_of_its_own(log: EventLog) -> None:
    checkpoints = Checkpoints(log, lambda _: None)
    await checkpoints.refresh()
    policy = checkpoints.lineage("policy")
    first = policy.promoted_at
    announce(log, "critique", "c1", "promoted", decided_by="trainer")
    await checkpoints.refresh()
    assert (policy.promoted_at, policy.offset) == (first, first)
    announce(log, "policy", "v1", "promoted", decided_by="joe")
    await checkpoints.refresh()
    assert (policy.stable, policy.promoted_by) == ("v1", "joe")
    assert policy.promoted_at > first


async def test_a_rejection_looks_at_the_log_first(log: EventLog) -> None:
    announce(log, "policy", "v2", "approved", decided_by="gate")
    checkpoints = Checkpoints(log, lambda _: None)
    await checkpoints.refresh()
    announce(log, "policy", "v2", "promoted", decided_by="joe")
    await checkpoints.reject("policy", "v2", by="rollout/shop/policy", reason="bad", audit_id="a")
    assert words(log)[-1] == ("v2", PROMOTED)
