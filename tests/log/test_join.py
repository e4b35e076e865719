from hypothesis import given, settings
from hypothesis import strategies as st

from anyloop.log.join import join
from protos.anyloop.v1 import events_pb2
from tests.trainer.events import feedback, response

NAMES = st.sampled_from(["a", "b", "c", "d"])
RESPONSES = st.lists(NAMES, unique=True)
FEEDBACK = st.lists(st.tuples(st.integers(0, 12), NAMES, st.sampled_from(["", *"abcd"])), max_size=12)


def said(number: int, name: str, worse: str) -> events_pb2.FeedbackEvent:
    return feedback(f"f{number}", name, created=2000 + number, preferred_over=worse, critique="no")


@settings(max_examples=150, deadline=None)
@given(RESPONSES, FEEDBACK, st.randoms())
def test_the_join_does_not_depend_on_order_or_repetition(names: list[str], rows: list, shuffle: object) -> None:
    responses = [response(name) for name in names]
    unique = {number: said(number, name, worse) for number, name, worse in rows}
    events = list(unique.values())
    joined, waiting = join(events, responses)

    repeated, again = events * 2, responses * 2
    shuffle.shuffle(repeated)  # type: ignore[attr-defined]
    shuffle.shuffle(again)  # type: ignore[attr-defined]
    assert join(repeated, again) == (joined, waiting)
    assert len(joined) + len(waiting) == len(events)
    for one in joined:
        assert one.response.response_id == one.feedback.feedback.response_id
        assert (one.worse is not None) == bool(one.feedback.feedback.preferred_over)
    for event in waiting:
        assert not {n for n in (event.feedback.response_id, event.feedback.preferred_over) if n} <= set(names)


def test_feedback_on_a_conversation_speaks_of_the_newest_response_before_it() -> None:
    talk = [response(f"r{at}", conversation="talk", created=at) for at in (100, 200, 300)]
    event = feedback("f", created=250, conversation_id="talk", label=False)
    joined, _ = join([event], talk)
    assert joined[0].response.response_id == "r200"


def test_feedback_before_any_response_of_its_conversation_waits() -> None:
    event = feedback("f", created=50, conversation_id="talk", label=False)
    assert join([event], [response("r", conversation="talk", created=100)]) == ([], [event])


def test_the_same_idempotency_key_counts_once_per_principal() -> None:
    events = [
        feedback("f1", "a", key="k", created=1, critique="one"),
        feedback("f2", "a", key="k", created=2, critique="two"),
        feedback("f3", "a", key="k", created=3, principal="bob", critique="three"),
    ]
    joined, _ = join(events, [response("a")])
    assert [one.feedback.feedback_id for one in joined] == ["f1", "f3"]


@given(st.permutations([0, 1, 2]))
def test_of_attempts_at_one_answer_the_last_counts_in_whatever_order_they_came(order: list[int]) -> None:
    """One that was generated into a broken connection may have ended before the last, or after it."""
    attempts = [response("a", output=[at + 3], created=ended, attempt=at) for ended, at in enumerate(order)]
    (joined,), _ = join([feedback("f", "a")], attempts)
    assert joined.response.attempt == 2


def test_an_attempt_that_somebody_else_claims_does_not_count() -> None:
    events = [response("a", principal="ann"), response("a", principal="thief", created=2000, attempt=9)]
    (joined,), _ = join([feedback("f", "a")], events)
    assert joined.response.principal == "ann"
