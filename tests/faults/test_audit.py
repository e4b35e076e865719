from collections.abc import Sequence

import pytest

from tests.faults.audit import Attempt, Findings, Logged, Window, audit

KILLED = Window("policy killed", 10.0, 20.0, {"chat": frozenset({"503", "cut"})})


def _chat(name: str, at: float = 0.0, status: str = "200") -> Attempt:
    return Attempt("chat", at, at + 1, status, name)


def _said(name: str, at: float = 0.0, status: str = "200") -> Attempt:
    return Attempt("feedback", at, at + 1, status, name)


def _audit(
    attempts: Sequence[Attempt],
    responses: Sequence[str],
    feedback: Sequence[tuple[str, str]] = (),
    policy: Sequence[str] = (),
    unlogged: int = 0,
) -> Findings:
    return audit(attempts, [KILLED], Logged(responses, feedback), {"policy": policy}, unlogged=unlogged)


def test_equal_sets_are_no_violation() -> None:
    found = _audit([_chat("r1"), _chat("r2"), _said("f1")], ["r1", "r2"], [("f1", "r1")], ["f1"])
    assert found.violations == []
    assert found.responses == {"accepted": 2, "logged": 2, "unlogged": 0, "unheard": 0, "duplicates": 0}
    assert found.feedback == {
        "accepted": 1,
        "logged": 1,
        "unheard": 0,
        "duplicates": 0,
        "expected": 1,
        "learned": 1,
        "about_unlogged_responses": 0,
    }


def test_a_lost_response_is_named() -> None:
    found = _audit([_chat("r1"), _chat("r2")], ["r1"])
    assert found.violations == ["1 accepted responses are not in the log, 0 were counted as unlogged: r2"]


def test_responses_the_service_counted_as_unlogged_may_be_missing_and_feedback_on_them_is_not_learned() -> None:
    found = _audit([_chat("r1"), _chat("r2"), _said("f2")], ["r1"], [("f2", "r2")], unlogged=1)
    assert found.violations == []
    assert found.feedback["about_unlogged_responses"] == 1


def test_a_counter_that_counts_too_much_is_a_violation() -> None:
    assert _audit([_chat("r1")], ["r1"], unlogged=1).violations


def test_duplicates_in_the_log_are_counted_but_no_violation() -> None:
    found = _audit([_chat("r1"), _said("f1")], ["r1", "r1", "r1"], [("f1", "r1"), ("f1", "r1")], ["f1"])
    assert found.violations == []
    assert (found.responses["duplicates"], found.feedback["duplicates"]) == (2, 1)


def test_an_event_that_the_client_did_not_hear_of_needs_a_request_that_ended_without_an_answer() -> None:
    cut = _chat("", 12.0, "cut")
    assert _audit([cut], ["r9"]).violations == []
    assert _audit([cut], ["r9"]).responses["unheard"] == 1
    assert _audit([_chat("", 12.0, "503")], ["r9"]).violations == []
    nobody = ["1 responses in the log that nobody asked for: r9"]
    assert _audit([], ["r9"]).violations == nobody
    assert nobody[0] in _audit([_chat("", 12.0, "400")], ["r9"]).violations
    assert _audit([], ["r1"], [("f9", "r1")], ["f9"]).violations[1:] == [
        "1 feedback events in the log that nobody sent: f9"
    ]


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        ([], "1 feedback events in the log were never learned from: f1"),
        (["f1", "f1"], "1 feedback events were learned twice by policy: f1"),
        (["f1", "f7"], "policy learned 1 events that the log lacks: f7"),
    ],
)
def test_each_event_is_learned_once(policy: list[str], complaint: str) -> None:
    assert _audit([_chat("r1"), _said("f1")], ["r1"], [("f1", "r1")], policy).violations == [complaint]


def test_another_lineage_may_pass_an_event_over_but_not_learn_it_twice() -> None:
    attempts, logged = [_chat("r1"), _said("f1")], Logged(["r1"], [("f1", "r1")])
    assert audit(attempts, [], logged, {"policy": ["f1"], "critique": []}).violations == []
    found = audit(attempts, [], logged, {"policy": ["f1"], "critique": ["f1", "f1"]})
    assert found.violations == ["1 feedback events were learned twice by critique: f1"]


def test_lost_feedback_is_named() -> None:
    found = _audit([_chat("r1"), _said("f1")], ["r1"])
    assert found.violations == ["1 accepted feedback events are not in the log: f1"]


def test_failures_are_explained_by_the_window_they_touch_and_by_what_may_fail_in_it() -> None:
    found = _audit([_chat("", 9.5, "503"), _chat("", 19.5, "cut")], [])
    assert found.violations == []
    assert found.failed == {"chat 503 · policy killed": 1, "chat cut · policy killed": 1}


@pytest.mark.parametrize(
    ("attempt", "where"),
    [
        (_chat("", 21.0, "503"), "outside every fault"),
        (_chat("", 15.0, "500"), "during policy killed"),
        (_said("", 15.0, "503"), "during policy killed"),
    ],
)
def test_other_failures_are_violations(attempt: Attempt, where: str) -> None:
    (violation,) = _audit([attempt], []).violations
    assert where in violation


def test_dead_letters_are_a_violation() -> None:
    assert audit([], [], Logged([], [], dead_letters=2), {}).violations == ["2 events went to the dead letters"]
