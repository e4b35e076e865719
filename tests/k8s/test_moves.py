from dataclasses import replace

import pytest

from k8s.moves import Act, Observed, budget, next_move, reached
from k8s.run import Run
from k8s.spec import Spec
from k8s.verdicts import Step

SPEC = Spec.parse(
    {
        "selector": {"matchLabels": {"app": "policy"}},
        "target": {"channel": "approved"},
        "strategy": {"type": "Canary", "steps": [{"replicas": 2, "pause": 60}, {"replicas": "50%", "pause": "manual"}]},
        "analysis": {"metrics": [{"name": "errors", "errorRate": {"max": 0.1}}]},
        "progressDeadlineSeconds": 100,
        "maxMixedSeconds": 5000,
    }
)
RUN = Run.begin("v2", "v1", 3, 7, now=1000.0)
AT_STEP = replace(RUN, reached=1000.0)
PASSED, WAITING, FAILED = Step(), Step(conclusive=False), Step(failed="metric errors failed", conclusive=False)


@pytest.mark.parametrize(
    ("seen", "more"),
    [
        (Observed(10, 10), 2),
        (Observed(10, 10, on_target=1), 1),
        (Observed(10, 10, on_target=1, swapping=1), 0),
        (Observed(12, 8), 2),  # four are new, and not ready yet
        (Observed(11, 10, on_target=1), 1),
        (Observed(1, 1), 1),
        (Observed(10, 10, on_target=5), 0),
    ],
)
def test_a_step_takes_no_more_replicas_than_it_names(seen: Observed, more: int) -> None:
    assert budget(SPEC, RUN, seen) == more


def test_replicas_that_the_target_crashed_count_as_changed_until_they_are_back() -> None:
    assert budget(SPEC, replace(RUN, lost=("a",)), Observed(10, 9)) == 1
    assert budget(SPEC, replace(RUN, lost=("a", "b")), Observed(10, 8)) == 0


def test_replicas_that_the_target_crashed_keep_a_step_from_its_end_until_they_are_back() -> None:
    last = replace(RUN, step=2)
    assert not reached(SPEC, replace(last, lost=("a", "b")), Observed(3, 1, on_target=1))
    assert reached(SPEC, last, Observed(3, 1, on_target=1))  # two have not started yet: they will read the promotion
    assert reached(SPEC, replace(last, lost=("a",)), Observed(20, 19, on_target=19))  # of many, maxUnreachable may lack


@pytest.mark.parametrize("seen", [Observed(0, 0), Observed(3, 0)], ids=["no pods", "none ready"])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_without_replicas_no_step_ends_and_nothing_is_promoted(step: int, seen: Observed) -> None:
    begun = replace(RUN, step=step)
    assert not reached(SPEC, begun, seen)
    for run in (begun, replace(begun, reached=1000.0, short=1010.0)):
        for advanced in (False, True):
            move = next_move(SPEC, run, seen, PASSED, advanced, 4000.0)
            assert (move.act, move.reason) == (Act.WAIT, "NoReplica")
    assert next_move(SPEC, replace(begun, reached=1000.0), seen, FAILED, False, 4000.0).reason == "AnalysisFailed"


def test_a_step_of_no_replicas_needs_none() -> None:
    manual = Spec.parse({"selector": {}, "target": {"channel": "approved"}, "strategy": {"type": "Manual"}})
    assert reached(manual, RUN, Observed(0, 0))
    run = replace(RUN, reached=1000.0)
    assert next_move(manual, run, Observed(0, 0), WAITING, False, 1001.0).reason == "AwaitingAdvance"
    assert next_move(manual, run, Observed(0, 0), WAITING, True, 1001.0).act is Act.NEXT


@pytest.mark.parametrize(("total", "failures", "act"), [(1, 1, Act.ROLL_BACK), (3, 2, Act.WAIT), (3, 3, Act.ROLL_BACK)])
def test_a_small_fleet_bears_fewer_crashes_than_it_has_replicas(total: int, failures: int, act: Act) -> None:
    move = next_move(SPEC, replace(RUN, failures=failures), Observed(total, total), PASSED, False, 1001.0)
    assert move.act is act


def test_a_step_is_reached_when_its_replicas_serve_the_target_and_none_is_changing() -> None:
    assert not reached(SPEC, RUN, Observed(10, 10, on_target=1))
    assert not reached(SPEC, RUN, Observed(10, 10, on_target=2, swapping=1))
    assert reached(SPEC, RUN, Observed(10, 10, on_target=2))


def test_few_replicas_that_do_not_answer_hold_up_no_promotion_and_many_do() -> None:
    last = replace(RUN, step=2)
    assert reached(SPEC, last, Observed(20, 20, on_target=18, unreachable=2))
    assert not reached(SPEC, last, Observed(20, 20, on_target=17, unreachable=3))


def test_a_reached_step_lasts_as_long_as_its_pause() -> None:
    seen = Observed(10, 10, on_target=2)
    assert next_move(SPEC, AT_STEP, seen, PASSED, False, 1059.0).act is Act.WAIT
    assert next_move(SPEC, AT_STEP, seen, PASSED, False, 1059.0).until == 1060.0
    assert next_move(SPEC, AT_STEP, seen, PASSED, False, 1060.0).act is Act.NEXT


def test_inconclusive_metrics_hold_a_step_until_the_deadline() -> None:
    seen = Observed(10, 10, on_target=2)
    assert next_move(SPEC, AT_STEP, seen, WAITING, False, 1100.0).act is Act.WAIT
    move = next_move(SPEC, AT_STEP, seen, WAITING, False, 1160.0)
    assert (move.act, move.reason) == (Act.ROLL_BACK, "DeadlineExceeded")


def test_inconclusive_metrics_let_a_step_go_on_where_that_is_asked_for() -> None:
    relaxed = replace(SPEC, analysis=replace(SPEC.analysis, waits=False))
    assert next_move(relaxed, AT_STEP, Observed(10, 10, on_target=2), WAITING, False, 1060.0).act is Act.NEXT


def test_what_speaks_against_the_target_holds_a_step_also_where_little_data_would_not() -> None:
    relaxed = replace(SPEC, analysis=replace(SPEC.analysis, waits=False))
    doubtful = replace(WAITING, doubt="2 of 3 requests failed")
    seen = Observed(10, 10, on_target=2)
    assert next_move(relaxed, AT_STEP, seen, doubtful, False, 1060.0).act is Act.WAIT
    move = next_move(relaxed, AT_STEP, seen, doubtful, False, 1160.0)
    assert move.act is Act.ROLL_BACK
    assert move.message.endswith("(2 of 3 requests failed)")


def test_a_failed_metric_ends_the_run_at_once() -> None:
    move = next_move(SPEC, AT_STEP, Observed(10, 10, on_target=2), FAILED, False, 1001.0)
    assert (move.act, move.message) == (Act.ROLL_BACK, "metric errors failed")


def test_an_operator_ends_a_manual_step_and_nothing_else_does() -> None:
    run, seen = replace(AT_STEP, step=1), Observed(10, 10, on_target=5)
    assert next_move(SPEC, run, seen, PASSED, False, 4000.0).phase == "AwaitingAdvance"
    assert next_move(SPEC, run, seen, PASSED, True, 4000.0).act is Act.NEXT


def test_after_the_last_step_the_version_is_promoted() -> None:
    run = replace(AT_STEP, step=2)
    assert next_move(SPEC, run, Observed(10, 10, on_target=10), PASSED, False, 1001.0).act is Act.FINISH


def test_a_replica_that_restarted_keeps_the_last_step_from_ending() -> None:
    run = replace(AT_STEP, step=2, short=1050.0)
    seen = Observed(10, 10, on_target=9)
    assert next_move(SPEC, run, seen, PASSED, False, 1100.0).act is Act.WAIT
    assert next_move(SPEC, run, seen, PASSED, False, 1150.0).reason == "DeadlineExceeded"


def test_without_progress_the_run_ends_and_names_what_it_waited_for() -> None:
    move = next_move(SPEC, RUN, Observed(10, 10, on_target=1), PASSED, False, 1100.0)
    assert move.act is Act.ROLL_BACK
    assert move.message == "step 1 of 3: 1 of 2 replicas serve v2, and nothing moved for 100 s"


def test_a_fleet_is_not_mixed_for_ever() -> None:
    run = replace(AT_STEP, step=1)
    assert next_move(SPEC, run, Observed(10, 10, on_target=5), PASSED, False, 6000.0).reason == "MixedTooLong"


def test_replicas_that_crash_end_the_run() -> None:
    run = replace(AT_STEP, failures=4)
    assert next_move(SPEC, run, Observed(10, 10, on_target=2), PASSED, False, 1001.0).reason == "ReplicasFailed"
