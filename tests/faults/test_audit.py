from collections.abc import Mapping, Sequence

import pytest

from tests.faults.audit import Attempt, Findings, Logged, LoggedFeedback, LoggedResponse, Window, audit

KILLED = Window("policy killed", 10.0, 20.0, {"chat": frozenset({"503", "cut"})})
FULL = Window("disk full", 30.0, 40.0, {"feedback": frozenset({"503"})}, unlogged=True)
AWAY = Window("gateway killed", 50.0, 60.0, {"feedback": frozenset({"cut", "refused", "503"})})


def _chat(name: str, at: float = 0.0, status: str = "200") -> Attempt:
    return Attempt("chat", at, at + 1, status, name)


def _said(name: str, about: str = "r1", at: float = 0.0, status: str = "200", key: str = "") -> Attempt:
    return Attempt("feedback", at, at + 1, status, name, about=about, key=key)


def _audit(
    attempts: Sequence[Attempt],
    responses: Sequence[str | tuple[str, float]],
    feedback: Sequence[tuple[str, ...]] = (),
    policy: Sequence[str] = (),
    *,
    others: Mapping[str, Sequence[str]] | None = None,
    unlogged: int = 0,
    refinements: int | None = None,
    at_least: int = 0,
) -> Findings:
    logged = Logged(
        [LoggedResponse(one, 0.5) if isinstance(one, str) else LoggedResponse(*one) for one in responses],
        [LoggedFeedback(*one) for one in feedback],
    )
    return audit(
        attempts,
        [KILLED, FULL, AWAY],
        logged,
        {"policy": policy, **(others or {})},
        unlogged=unlogged,
        refinements=refinements,
        at_least=at_least,
    )


def test_equal_sets_are_no_violation() -> None:
    found = _audit([_chat("r1"), _chat("r2"), _said("f1")], ["r1", "r2"], [("f1", "r1")], ["f1"], refinements=1)
    assert found.violations == []
    assert found.responses == {"accepted": 2, "logged": 2, "unlogged": 0, "unheard": 0, "duplicates": 0}
    assert found.feedback == {
        "accepted": 1,
        "logged": 1,
        "unheard": 0,
        "given_up": 0,
        "duplicates": 0,
        "expected": 1,
        "learned": 1,
        "about_unlogged_responses": 0,
    }


def test_a_lost_response_is_named() -> None:
    found = _audit([_chat("r1"), _chat("r2")], ["r1"])
    assert found.violations == ["1 accepted responses are not in the log: r2"]


def test_responses_the_service_counted_as_unlogged_may_be_missing_and_feedback_on_them_is_not_learned() -> None:
    found = _audit([_chat("r1"), _chat("r2", 32.0), _said("f2", "r2")], ["r1"], [("f2", "r2")], unlogged=1)
    assert found.violations == []
    assert found.feedback["about_unlogged_responses"] == 1


def test_a_response_lost_outside_the_fault_is_not_excused_by_the_counter() -> None:
    found = _audit([_chat("r1"), _chat("r2", 2.0)], ["r1"], unlogged=1)
    assert found.violations == [
        "1 accepted responses are not in the log: r2",
        "1 responses were counted as unlogged, 0 are not in the log",
    ]


def test_more_missing_than_counted_and_more_counted_than_missing_are_violations() -> None:
    assert _audit([_chat("r1", 32.0), _chat("r2", 33.0)], [], unlogged=1).violations == [
        "2 accepted responses are not in the log, 1 were counted as unlogged: r1, r2"
    ]
    assert _audit([_chat("r1", 32.0)], ["r1"], unlogged=1).violations == [
        "1 responses were counted as unlogged, 0 are not in the log"
    ]


def test_an_answer_nobody_heard_the_end_of_may_be_counted_as_unlogged() -> None:
    cut = _chat("", 32.0, "cut")
    assert not any("unlogged" in one for one in _audit([cut], [], unlogged=1).violations)
    assert any("unlogged" in one for one in _audit([cut], [("r1", 32.5)], unlogged=1).violations)


def test_feedback_about_a_response_that_is_nowhere_is_a_violation() -> None:
    found = _audit([_said("f1", "r9")], [], [("f1", "r9")])
    assert found.violations == ["1 feedback events are about responses that the log should have: f1"]


def test_duplicates_in_the_log_are_violations() -> None:
    found = _audit([_chat("r1"), _said("f1")], ["r1", "r1", "r1"], [("f1", "r1"), ("f1", "r1")], ["f1"])
    assert found.violations == [
        "1 responses stand in the log more than once: r1",
        "1 feedback events stand in the log more than once: f1",
    ]
    assert (found.responses["duplicates"], found.feedback["duplicates"]) == (2, 1)


def test_a_response_that_the_client_did_not_hear_of_needs_a_request_that_ended_without_an_answer() -> None:
    cut = _chat("", 12.0, "cut")
    assert _audit([cut], [("r9", 12.5)]).violations == []
    assert _audit([cut], [("r9", 12.5)]).responses["unheard"] == 1
    assert _audit([_chat("", 12.0, "503")], [("r9", 12.5)]).violations == []
    nobody = ["1 responses in the log that nobody asked for: r9"]
    assert _audit([], ["r9"]).violations == nobody
    assert nobody[0] in _audit([_chat("", 12.0, "400")], [("r9", 12.5)]).violations


def test_a_request_without_an_answer_buys_one_event_and_of_its_own_time() -> None:
    cut = _chat("", 12.0, "cut")
    assert _audit([cut], [("r8", 12.5), ("r9", 12.6)]).violations == [
        "1 responses in the log that nobody asked for: r9"
    ]
    assert _audit([cut], [("r9", 5.0)]).violations == ["1 responses in the log that nobody asked for: r9"]
    assert _audit([cut], [("r9", 25.0)]).violations == ["1 responses in the log that nobody asked for: r9"]


def test_a_stream_that_broke_buys_the_event_whose_id_it_had() -> None:
    broken = _chat("r7", 12.0, "cut")
    assert _audit([broken], [("r7", 19.0)]).violations == []
    assert _audit([broken], [("r9", 12.5)]).violations == ["1 responses in the log that nobody asked for: r9"]


def test_feedback_that_the_client_did_not_hear_of_needs_its_own_request_that_was_cut() -> None:
    chat, logged = _chat("r1"), [("f9", "r1")]
    assert _audit([chat, _said("", "r1", 52.0, "cut")], ["r1"], logged, ["f9"]).violations == []
    assert _audit([chat, _said("", "r2", 52.0, "cut")], ["r1"], logged, ["f9"]).violations == [
        "1 feedback events in the log that nobody sent: f9"
    ]


@pytest.mark.parametrize("status", ["503", "refused"])
def test_feedback_that_was_refused_and_is_in_the_log_all_the_same_is_a_violation(status: str) -> None:
    refused = [_said("", f"r{n}", 52.0, status) for n in (1, 2, 3)]
    assert _audit([_chat("r1"), *refused], ["r1"], [("f1", "r1")], ["f1"]).violations == [
        "1 feedback events in the log that the gateway refused: f1"
    ]


def test_a_statement_sent_again_stands_in_the_log_under_one_id() -> None:
    attempts = [_chat("r1"), _said("", "r1", 52.0, "cut", key="k"), _said("f2", "r1", 54.0, key="k")]
    assert _audit(attempts, ["r1"], [("f2", "r1", "k")], ["f2"]).violations == []
    twice = _audit(attempts, ["r1"], [("f1", "r1", "k"), ("f2", "r1", "k")], ["f1", "f2"])
    assert twice.violations == ["1 statements are in the log under several ids: f1, f2"]


def test_a_statement_that_never_heard_yes_is_a_violation() -> None:
    tries = [_said("", "r1", at, "503", key="k") for at in (52.0, 54.0)]
    found = _audit([_chat("r1"), *tries], ["r1"])
    assert found.violations == ["1 statements never heard yes, however often they were sent: k"]
    assert found.feedback["given_up"] == 1


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


def test_what_a_manifest_names_and_nobody_trained_on_is_a_violation() -> None:
    attempts, responses = [_chat("r1"), _said("f1"), _said("f2", "r2"), _chat("r2")], ["r1", "r2"]
    found = _audit(attempts, responses, [("f1", "r1"), ("f2", "r2")], ["f1", "f2"], refinements=1)
    assert found.violations == [
        "the policy's manifests name 2 pieces of feedback, each with a refinement, but it was trained on 1 of these"
    ]


def test_another_lineage_may_pass_an_event_over_but_not_learn_it_twice() -> None:
    attempts, responses, feedback = [_chat("r1"), _said("f1")], ["r1"], [("f1", "r1")]
    assert _audit(attempts, responses, feedback, ["f1"], others={"critique": []}).violations == []
    found = _audit(attempts, responses, feedback, ["f1"], others={"critique": ["f1", "f1"]})
    assert found.violations == ["1 feedback events were learned twice by critique: f1"]


def test_a_scenario_in_which_little_or_nothing_happened_does_not_hold() -> None:
    assert _audit([_chat("r1")], ["r1"], at_least=2).violations == [
        "only 1 responses were accepted, at least 2 should be",
        "only 0 feedback events were accepted, at least 2 should be",
        "nobody got an answer during disk full",
        "disk full: nothing was refused and nothing unlogged, so it had no effect",
        "nobody got an answer during gateway killed",
    ]


def test_a_full_disk_that_refused_feedback_had_an_effect() -> None:
    attempts = [_chat("r1", 32.0), _chat("r2", 52.0), _said("f1"), _said("", "r2", 34.0, "503")]
    found = _audit(attempts, [("r1", 32.5), ("r2", 52.5)], [("f1", "r1")], ["f1"], at_least=1)
    assert found.violations == []


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
        (_said("", "r1", 15.0, "503"), "during policy killed"),
    ],
)
def test_other_failures_are_violations(attempt: Attempt, where: str) -> None:
    (violation,) = _audit([attempt], []).violations
    assert where in violation


def test_dead_letters_are_a_violation() -> None:
    assert audit([], [], Logged([], [], dead_letters=2), {}).violations == ["2 events went to the dead letters"]
