from dataclasses import replace
from typing import Any

from anyloop.registry.announce import APPROVED, CANDIDATE, PROMOTED, REJECTED
from k8s.checkpoints import Lineage
from k8s.decide import World, decide
from k8s.fleet import Failure, Loss
from k8s.moves import Observed
from k8s.replicas import Fault
from k8s.run import ABORTED, COMPLETED, PROMOTING, ROLLED_BACK, ROLLING_BACK, SUPERSEDED, Ended, Run
from k8s.spec import Spec
from protos.anyloop.v1.events_pb2 import CheckpointEvent

NOW = 2000.0


def lineage(*words: tuple[str, int] | tuple[str, int, str]) -> Lineage:
    found = Lineage()
    for offset, (version, state, *by) in enumerate(words):
        decided_by = by[0] if by else "gate"
        found.take(offset, CheckpointEvent(version=version, state=state, decided_by=decided_by, reason="because"))
    return found


FIRST = ("v1", PROMOTED, "base")


def spec(**changes: Any) -> Spec:
    base = {"selector": {"matchLabels": {"app": "policy"}}, "target": {"channel": "approved"}}
    return Spec.parse({**base, **changes})


def world(*words: Any, **changes: Any) -> World:
    return replace(World(spec(), lineage(FIRST, *words), Observed(3, 3), NOW), **changes)


RUN = Run.begin("v2", "v1", 1, 1, now=1900.0)  # after the log's second word


def test_an_approved_version_begins_a_rollout() -> None:
    decision = decide(world(("v2", APPROVED)))
    assert decision.run is not None
    assert (decision.run.version, decision.run.stable) == ("v2", "v1")
    assert [notice.audit for notice in decision.notices] == ["rollout.start"]


def test_candidates_and_rejected_versions_begin_nothing() -> None:
    assert decide(world(("v2", CANDIDATE))).run is None
    assert decide(world(("v2", APPROVED), ("v2", REJECTED))).run is None


def test_an_approval_that_a_promotion_overtook_begins_nothing() -> None:
    assert decide(world(("v2", APPROVED), ("v3", PROMOTED, "joe"))).run is None


def test_a_named_version_is_rolled_out_once() -> None:
    named = spec(target={"version": "v2"})
    begun = decide(world(("v2", CANDIDATE), spec=named))
    assert begun.run is not None
    assert begun.handled == "v2"
    failed = Ended("v2@1", "v2", ROLLED_BACK, "v1", "it was bad")
    later = decide(world(("v2", REJECTED), spec=named, handled="v2", history=[failed]))
    assert (later.run, later.phase) == (None, "RolledBack")


def test_an_operator_may_have_the_last_failed_version_tried_again() -> None:
    failed = Ended("v2@1", "v2", ROLLED_BACK, "v1", "it was bad")
    asked = world(("v2", REJECTED), history=[failed], annotations={"anyloop.dev/retry": "v2@1 joe@desk"})
    decision = decide(asked)
    assert decision.run is not None
    assert decision.run.version == "v2"
    assert decision.notices[0].actor == "joe@desk"
    again = replace(asked, history=[Ended("v2@2", "v2", ROLLED_BACK), failed])
    assert decide(again).run is None


def test_an_unknown_version_is_said_to_be_unknown() -> None:
    decision = decide(world(spec=spec(target={"version": "v9"})))
    assert (decision.phase, decision.reason) == ("Pending", "UnknownVersion")
    assert "anyloop checkpoints list" in decision.message


def test_nothing_begins_before_a_first_promotion_or_without_replicas_or_while_paused() -> None:
    assert decide(replace(world(), lineage=Lineage())).reason == "NothingPromoted"
    assert decide(world(("v2", APPROVED), seen=Observed(3, 0))).reason == "NoReplica"
    assert decide(world(("v2", APPROVED), seen=Observed(3, 2, unreachable=2))).reason == "NoReplica"
    assert decide(world(("v2", APPROVED), spec=spec(paused=True))).phase == "Paused"


def test_the_gates_report_may_refuse_a_version_before_any_replica_changes() -> None:
    strict = spec(analysis={"metrics": [{"name": "gain", "gate": {"path": "gain.low", "min": 0.02}}]})
    found = lineage(FIRST)
    found.take(1, CheckpointEvent(version="v2", state=APPROVED, report_json='{"gain": {"low": 0.01}}'))
    decision = decide(world(lineage=found, spec=strict))
    assert decision.run is None
    assert decision.ended is not None
    assert decision.ended.outcome == ROLLED_BACK
    assert decision.announce is not None
    assert not decision.announce.promote
    assert "gain.low of the gate's report is 0.01, under 0.02" in decision.ended.reason


def test_of_two_for_one_lineage_the_older_decides() -> None:
    decision = decide(world(("v2", APPROVED), rival="shop/first"))
    assert (decision.phase, decision.run) == ("Conflicted", None)


def test_all_replicas_on_the_target_lead_to_its_promotion() -> None:
    reached = world(("v2", APPROVED), run=RUN, seen=Observed(3, 3, on_target=3))
    promoting = decide(reached)
    assert promoting.run is not None
    assert promoting.run.state == PROMOTING
    assert promoting.announce is None  # the intention is written before the word is given
    done = decide(replace(reached, run=promoting.run))
    assert done.announce is not None
    assert (done.announce.promote, done.announce.version) == (True, "v2")
    assert done.ended is not None
    assert done.ended.outcome == COMPLETED


def test_a_promotion_that_was_announced_before_a_kill_is_not_announced_again() -> None:
    promoting = replace(RUN, state=PROMOTING)
    decision = decide(world(("v2", APPROVED), ("v2", PROMOTED, "rollout/shop/policy"), run=promoting))
    assert decision.announce is None
    assert decision.ended is not None
    assert decision.ended.outcome == COMPLETED


def test_refused_weights_turn_the_fleet_back_at_once() -> None:
    refused = [Failure("policy-2", "v2", Fault.REFUSED, "policy-2: FAILED_PRECONDITION: corrupt")]
    decision = decide(world(("v2", APPROVED), run=RUN, failures=refused))
    assert decision.run is not None
    assert (decision.run.state, decision.run.outcome) == (ROLLING_BACK, ROLLED_BACK)
    assert "corrupt" in decision.run.reason


def test_replicas_that_crash_are_counted_and_the_limit_ends_the_run() -> None:
    many = Observed(9, 9)
    some = decide(world(("v2", APPROVED), run=RUN, seen=many, lost=[Loss(pod, "v2") for pod in "abc"]))
    assert some.run is not None
    assert (some.run.failures, some.run.state) == (3, "Progressing")
    more = decide(world(("v2", APPROVED), run=some.run, seen=many, lost=[Loss("a", "v2")]))
    assert more.run is not None
    assert more.run.outcome == ROLLED_BACK


def test_a_rollback_ends_when_no_replica_serves_the_target() -> None:
    turned = RUN.rolling_back(ROLLED_BACK, "errors", NOW)
    going = decide(world(("v2", APPROVED), run=turned, seen=Observed(3, 3, on_target=1)))
    assert going.back == {"v2"}
    assert going.ended is None
    gone = decide(world(("v2", APPROVED), run=turned))
    assert gone.ended is not None
    assert gone.ended.outcome == ROLLED_BACK
    assert gone.announce is not None
    assert (gone.announce.promote, gone.announce.reason) == (False, "errors")


def test_a_rollback_waits_a_minute_for_replicas_that_do_not_answer_and_sends_them_back_later() -> None:
    turned = RUN.rolling_back(ROLLED_BACK, "errors", NOW - 59)
    silent = world(("v2", APPROVED), run=turned, seen=Observed(3, 3, unreachable=1))
    assert decide(silent).ended is None
    ended = decide(replace(silent, now=NOW + 1)).ended
    assert ended is not None
    idle = decide(world(("v2", REJECTED), given_up=["v2"]))
    assert idle.back == {"v2"}


def test_an_operators_promotion_overrides_the_rollout() -> None:
    decision = decide(world(("v2", APPROVED), ("v9", PROMOTED, "joe@desk"), run=RUN))
    assert decision.ended is not None
    assert decision.ended.outcome == SUPERSEDED
    assert decision.ended.reason == "v9 was promoted by joe@desk"
    assert decision.announce is not None
    assert not decision.announce.promote


def test_a_newer_approval_replaces_the_rollout() -> None:
    overtaken = decide(world(("v2", APPROVED), ("v3", APPROVED), run=RUN))
    assert overtaken.ended is not None
    assert overtaken.ended.reason == "v3 is rolled out instead"
    then = decide(world(("v2", REJECTED), ("v3", APPROVED), history=[overtaken.ended]))
    assert then.run is not None
    assert then.run.version == "v3"


def test_another_target_replaces_the_rollout_and_the_stable_one_ends_it() -> None:
    words = (("v2", CANDIDATE), ("v3", CANDIDATE))
    other = decide(world(*words, run=RUN, spec=spec(target={"version": "v3"}), handled="v2"))
    assert other.ended is not None
    assert (other.ended.outcome, other.handled) == (SUPERSEDED, "v2")
    back = decide(world(*words, run=RUN, spec=spec(target={"version": "v1"}), handled="v2"))
    assert back.run is not None
    assert (back.run.state, back.run.outcome) == (ROLLING_BACK, ABORTED)


def test_a_version_that_has_served_before_is_not_rejected_and_one_that_nobody_waits_for_only_when_it_failed() -> None:
    turned = RUN.rolling_back(ROLLED_BACK, "errors", NOW)
    before = lineage(("v2", PROMOTED), ("v1", PROMOTED))
    assert decide(world(lineage=before, run=turned)).announce is None
    aborted = RUN.rolling_back(ABORTED, "enough", NOW)
    assert decide(world(("v2", CANDIDATE), run=aborted)).announce is None
    assert decide(world(("v2", CANDIDATE), run=turned)).announce is not None


def test_abort_names_its_run_and_its_author() -> None:
    other = world(("v2", APPROVED), run=RUN, annotations={"anyloop.dev/abort": "v2@1 joe@desk"})
    assert decide(other).phase == "Progressing"
    decision = decide(replace(other, annotations={"anyloop.dev/abort": f"{RUN.id} joe@desk"}))
    assert decision.run is not None
    assert decision.run.outcome == ABORTED
    assert (decision.notices[0].audit, decision.notices[0].actor) == ("rollout.abort", "joe@desk")


def test_deletion_returns_the_fleet_first() -> None:
    decision = decide(world(("v2", APPROVED), run=RUN, deleting=True, seen=Observed(3, 3, on_target=1)))
    assert decision.run is not None
    assert decision.run.state == ROLLING_BACK
    assert decide(world(("v2", APPROVED), deleting=True)).run is None


def test_a_deletion_does_not_wait_for_ever_for_a_promotion() -> None:
    promoting = replace(RUN, state=PROMOTING, progress=NOW - 119.0)
    gone = world(("v2", APPROVED), run=promoting, deleting=True, seen=Observed(3, 3, on_target=3))
    assert decide(gone).announce is not None
    turned = decide(replace(gone, now=NOW + 1.0)).run
    assert turned is not None
    assert (turned.state, turned.outcome) == (ROLLING_BACK, ABORTED)


def test_a_pause_stops_the_clocks_and_changes_nothing() -> None:
    paused = decide(world(("v2", APPROVED), run=RUN, spec=spec(paused=True)))
    assert paused.run is not None
    assert (paused.phase, paused.change, paused.run.paused) == ("Paused", 0, NOW)
    later = decide(world(("v2", APPROVED), run=paused.run, now=NOW + 800))
    assert later.run is not None
    assert later.run.progress == RUN.progress + 800
    assert later.change == 3


def test_replicas_that_crash_in_a_pause_are_kept_in_mind() -> None:
    paused = replace(RUN, paused=1950.0)
    crashed = world(run=paused, spec=spec(paused=True), lost=[Loss("policy-2", "v2")], unready={"policy-2"})
    decision = decide(crashed)
    assert decision.run is not None
    assert (decision.phase, decision.run.failures, decision.run.lost) == ("Paused", 1, ("policy-2",))


def test_a_pause_has_an_end() -> None:
    paused = replace(RUN, paused=1950.0)
    decision = decide(world(("v2", APPROVED), run=paused, spec=spec(paused=True, maxMixedSeconds=100)))
    assert decision.run is not None
    assert decision.run.outcome == ROLLED_BACK


def test_a_step_that_is_no_more_is_passed_over() -> None:
    far = replace(RUN, step=4, steps=6)
    decision = decide(world(("v2", APPROVED), run=far))
    assert decision.run is not None
    assert (decision.run.step, decision.run.steps) == (0, 1)


def test_a_restart_in_a_reached_step_is_noted_and_mended_without_beginning_the_step_anew() -> None:
    canary = spec(strategy={"type": "Canary", "steps": [{"replicas": 2, "pause": "manual"}]})
    reached = replace(RUN, reached=1950.0, steps=2, peak=2)
    short = decide(world(("v2", APPROVED), run=reached, spec=canary, seen=Observed(3, 3, on_target=1)))
    assert short.run is not None
    assert (short.run.reached, short.run.short, short.change) == (1950.0, NOW, 1)
    whole = decide(world(("v2", APPROVED), run=short.run, spec=canary, seen=Observed(3, 3, on_target=2)))
    assert whole.run is not None
    assert whole.run.short is None


def test_a_crash_on_other_weights_is_not_the_fault_of_these() -> None:
    decision = decide(world(("v2", APPROVED), run=RUN, lost=[Loss("policy-0", "v1"), Loss("policy-1", "v1b")]))
    assert decision.run is not None
    assert decision.run.failures == 0


def test_a_crashed_replica_is_kept_in_mind_until_it_is_back() -> None:
    crashed = world(("v2", APPROVED), run=RUN, seen=Observed(3, 2, on_target=2), lost=[Loss("policy-2", "v2")])
    decision = decide(replace(crashed, unready={"policy-2", "policy-9"}))
    assert decision.run is not None
    assert (decision.run.lost, decision.run.reached, decision.change) == (("policy-2",), None, 0)
    later = replace(crashed, run=Run.from_status(decision.run.to_status()), lost=())  # another controller's, even
    waits = decide(replace(later, unready={"policy-2"}))
    assert waits.run is not None
    assert waits.run.lost == ("policy-2",)
    back = decide(replace(later, seen=Observed(3, 3, on_target=2)))
    assert back.run is not None
    assert (back.run.lost, back.change) == ((), 1)


def test_an_operators_promotion_of_the_stable_version_overrides_the_rollout_too() -> None:
    again = world(("v2", APPROVED), ("v1", PROMOTED, "joe@desk"))
    for run in (RUN, replace(RUN, state=PROMOTING)):
        decision = decide(replace(again, run=run))
        assert decision.ended is not None
        assert (decision.ended.outcome, decision.ended.reason) == (SUPERSEDED, "v1 was promoted again by joe@desk")
        assert decision.announce is not None
        assert (decision.announce.promote, decision.announce.version) == (False, "v2")
    named = replace(again, run=RUN, spec=spec(target={"version": "v2"}), handled="v2")
    ended = decide(named)
    assert ended.ended is not None
    assert decide(replace(named, run=None, history=[ended.ended], handled=ended.handled)).run is None


def test_only_a_rejection_since_the_run_began_aborts_it() -> None:
    words = (("v2", APPROVED), ("v2", REJECTED, "joe@desk"))
    stopped = decide(world(*words, run=RUN))
    assert stopped.run is not None
    assert stopped.run.reason == "v2 was rejected by joe@desk: because"
    retried = decide(world(*words, run=replace(RUN, log_offset=2)))
    assert retried.run is not None
    assert retried.run.state == "Progressing"


def test_a_version_that_failed_again_is_rejected_again() -> None:
    turned = replace(RUN, log_offset=2).rolling_back(ROLLED_BACK, "errors once more", NOW)
    decision = decide(world(("v2", APPROVED), ("v2", REJECTED), run=turned))
    assert decision.announce is not None
    assert (decision.announce.reason, decision.announce.after) == ("errors once more", 2)


def test_replicas_on_versions_that_were_given_up_go_back_while_another_is_rolled_out() -> None:
    canary = spec(strategy={"type": "Canary", "steps": [{"replicas": 1, "pause": "manual"}]})
    running = world(("v2", APPROVED), run=RUN, spec=canary, given_up=["v0", "v2", "v1"])
    assert decide(running).back == {"v0"}
    assert decide(replace(running, run=None)).back == frozenset()  # a look that begins a run
    assert decide(replace(running, spec=spec(paused=True))).back == frozenset()


def test_without_replicas_the_clocks_of_a_run_stand_still() -> None:
    away = decide(world(("v2", APPROVED), run=replace(RUN, progress=1990.0), seen=Observed(0, 0)))
    assert away.run is not None
    assert (away.reason, away.run.absent) == ("NoReplica", NOW)
    back = decide(world(("v2", APPROVED), run=away.run, now=NOW + 5000))
    assert back.run is not None
    assert (back.run.state, back.run.progress, back.run.absent) == ("Progressing", 6990.0, None)
