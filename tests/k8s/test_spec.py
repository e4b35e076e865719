import math

import pytest

from k8s.spec import ALL, MANUAL, Share, Spec, SpecError, Step

BASE = {"selector": {"matchLabels": {"app": "policy"}}, "target": {"channel": "approved"}}


def parsed(**changes: object) -> Spec:
    return Spec.parse({**BASE, **changes})


@pytest.mark.parametrize(
    ("value", "total", "up", "down"),
    [(1, 3, 1, 1), ("20%", 1, 1, 0), ("20%", 10, 2, 2), ("34%", 3, 2, 1), ("100%", 7, 7, 7), ("10%", 0, 0, 0)],
)
def test_a_share_of_replicas_is_rounded_up_or_down(value: int | str, total: int, up: int, down: int) -> None:
    assert Share.parse(value).up(total) == up
    assert Share.parse(value).down(total) == down


def test_without_a_strategy_all_replicas_are_one_step() -> None:
    assert parsed().steps == (Step(ALL),)


def test_a_canary_ends_with_all_replicas() -> None:
    steps = parsed(strategy={"type": "Canary", "steps": [{"replicas": 1, "pause": "5m"}, {"replicas": "40%"}]}).steps
    assert steps == (Step(Share(1), 300.0), Step(Share(percent=40)), Step(ALL))


def test_a_canary_that_names_all_replicas_itself_keeps_its_last_pause() -> None:
    steps = parsed(strategy={"type": "Canary", "steps": [{"replicas": "100%", "pause": 60, "analysis": False}]}).steps
    assert steps == (Step(ALL, 60.0, analysis=False),)


def test_manual_waits_before_the_first_replica_and_after_it() -> None:
    steps = parsed(strategy={"type": "Manual"}).steps
    assert [(step.replicas, step.pause) for step in steps] == [
        (Share(0), MANUAL),
        (Share(1), MANUAL),
        (ALL, 0.0),
    ]


@pytest.mark.parametrize(
    ("pause", "seconds"), [(0, 0.0), (90, 90.0), ("90s", 90.0), ("2h", 7200.0), ("manual", math.inf)]
)
def test_pauses_are_seconds_durations_or_an_operators_word(pause: int | str, seconds: float) -> None:
    assert parsed(strategy={"type": "Canary", "steps": [{"replicas": 1, "pause": pause}]}).steps[0].pause == seconds


def test_a_selector_needs_all_of_its_requirements() -> None:
    spec = parsed(
        selector={
            "matchLabels": {"app": "policy"},
            "matchExpressions": [
                {"key": "zone", "operator": "In", "values": ["a", "b"]},
                {"key": "lab", "operator": "DoesNotExist"},
            ],
        }
    )
    assert spec.selects({"app": "policy", "zone": "a"})
    assert not spec.selects({"app": "policy", "zone": "c"})
    assert not spec.selects({"app": "policy", "zone": "a", "lab": ""})
    assert not spec.selects({"zone": "a"})


def test_an_empty_selector_takes_no_pod() -> None:
    assert not parsed(selector={}).selects({"app": "policy"})


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": {"type": "Canary", "steps": [{"replicas": "some"}]}},
        {"strategy": {"type": "Canary", "steps": [{"replicas": 1, "pause": "soon"}]}},
        {"analysis": {"metrics": [{"name": "nothing"}]}},
        {"target": None},
    ],
    ids=["replicas", "pause", "metric", "target"],
)
def test_what_the_definition_would_refuse_is_no_crash(changes: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        parsed(**changes)


def test_no_bound_on_a_mixed_fleet_is_infinite() -> None:
    assert parsed(maxMixedSeconds=0).max_mixed == math.inf
    assert parsed().max_mixed == 86400
