"""Feedback by REST: every kind, in the log once it is accepted, once per idempotency key."""

import asyncio
from types import ModuleType
from typing import Any

import pytest

from anyloop.log import RESPONSES, Event
from protos.anyloop.v1 import events_pb2


async def logged(world: Any) -> list[events_pb2.FeedbackEvent]:
    return [record.event.unwrap() for record in await world.feedback()]


async def give(world: Any, status: int = 200, headers: dict[str, str] | None = None, **body: Any) -> Any:
    reply = await world.http.post("/v1/feedback", json=body, headers=headers or {})
    assert reply.status_code == status, reply.text
    return reply.json() if status == 200 else reply.json()["error"]


async def metric(world: Any, kind: str) -> float:
    for line in (await world.http.get("/metrics")).text.splitlines():
        if line.startswith(f'anyloop_feedback_events_total{{kind="{kind}"}}'):
            return float(line.split()[-1])
    return 0.0


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"critique": "the circle should be red"}, "critique"),
        ({"refinement": "a red circle"}, "refinement"),
        ({"refinement": [{"type": "text", "text": "a red circle"}]}, "refinement"),
        ({"rating": 0.25}, "rating"),
        ({"rating": 1}, "rating"),
        ({"rating": {"colour": 0, "overall": 0.5}}, "rating"),
        ({"label": False}, "label"),
        ({"preferred_over": "chatcmpl-other"}, "preference"),
        ({"tags": ["colour"]}, "tags"),
    ],
)
async def test_each_kind_is_in_the_log_and_counted(world: Any, said: dict[str, Any], kind: str) -> None:
    before = await metric(world, kind)
    taken = await give(world, response_id="chatcmpl-1", **said)
    (event,) = await logged(world)
    assert taken["kinds"] == [kind]
    assert (event.feedback_id, event.principal, event.feedback.response_id) == (taken["id"], "anonymous", "chatcmpl-1")
    assert event.created_unix_ms > 0
    assert await metric(world, kind) == before + 1


async def test_a_preference_may_say_in_words_how_the_two_compare(world: Any) -> None:
    taken = await give(world, response_id="r", preferred_over="other", comparison=" clearer than the other ")
    (event,) = await logged(world)
    assert taken["kinds"] == ["preference", "comparison"]
    assert event.feedback.comparison == "clearer than the other"


async def test_a_label_of_false_is_kept_apart_from_no_label(world: Any) -> None:
    await give(world, response_id="r", label=False)
    await give(world, response_id="r", critique="x")
    assert [event.feedback.HasField("label") for event in await logged(world)] == [True, False]


async def test_refinement_in_pictures_is_stored_and_read_back_by_id(world: Any, fake: ModuleType) -> None:
    upload = (await world.http.post("/v1/media", content=fake.RED)).json()
    refinement = [{"type": "text", "text": "so"}, {"type": "image_url", "image_url": {"url": upload["url"]}}]
    taken = await give(world, response_id="r", refinement=refinement, rating={"shape": 0.5})
    assert (await logged(world))[0].feedback.refinement[1].media.sha256 == upload["id"]
    found = (await world.http.get(f"/v1/feedback/{taken['id']}")).json()
    assert found["refinement"][1]["image_url"]["url"] == upload["url"]
    assert found["rating"] == {"shape": 0.5}
    assert (await world.http.get("/v1/feedback/fb-none")).status_code == 404


async def test_feedback_on_an_answer_just_given_is_not_early_and_shares_its_conversation(world: Any) -> None:
    answer = (await world.say("hello", conversation_id="talk-1")).json()
    taken = await give(world, response_id=answer["id"], critique="louder")
    assert taken["early"] is False
    assert (await logged(world))[0].feedback.conversation_id == "talk-1"
    (record,) = await world.feedback()
    assert record.event.key == "talk-1"


async def test_feedback_on_an_unknown_response_is_taken_and_flagged_early(world: Any) -> None:
    taken = await give(world, response_id="chatcmpl-tomorrow", critique="louder")
    assert taken["early"] is True
    (record,) = await world.feedback()
    assert record.event.key == "chatcmpl-tomorrow"  # an answer's conversation is its own id unless the client says else


async def test_answers_served_elsewhere_are_known_once_they_are_in_the_log(world: Any) -> None:
    response = events_pb2.ResponseEvent(response_id="elsewhere", conversation_id="talk-2")
    world.log.append(RESPONSES, Event.wrap(response, key="talk-2", source="test"))
    for _ in range(100):
        if not (await give(world, response_id="elsewhere", critique="louder", dry_run=True))["early"]:
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("the gateway never saw the response in the log")
    await give(world, response_id="elsewhere", critique="louder")
    assert (await logged(world))[0].feedback.conversation_id == "talk-2"
    error = await give(world, 400, response_id="elsewhere", conversation_id="talk-3", critique="louder")
    assert "another conversation" in error["message"]


async def test_dry_run_validates_and_writes_nothing(world: Any) -> None:
    taken = await give(world, response_id="r", critique="louder", dry_run=True)
    assert (taken["id"], taken["dry_run"], taken["kinds"]) == (None, True, ["critique"])
    assert await logged(world) == []
    await give(world, 400, response_id="r", rating=3, dry_run=True)


@pytest.mark.parametrize("by_header", [True, False])
async def test_a_repeated_idempotency_key_is_taken_once(world: Any, by_header: bool) -> None:
    body = {"response_id": "r", "critique": "louder", **({} if by_header else {"idempotency_key": "k1"})}
    headers = {"Idempotency-Key": "k1"} if by_header else {}
    first = await give(world, headers=headers, **body)
    second = await give(world, headers=headers, **body)
    assert (first["duplicate"], second["duplicate"]) == (False, True)
    assert first["id"] == second["id"]
    assert len(await logged(world)) == 1


async def test_an_idempotency_key_is_remembered_over_a_restart(start: Any) -> None:
    world = await start()
    first = await give(world, response_id="r", critique="louder", idempotency_key="k1")
    await world.end()
    again = await start()
    second = await give(again, response_id="r", critique="louder", idempotency_key="k1")
    assert (second["id"], second["duplicate"]) == (first["id"], True)
    assert len(await logged(again)) == 1


async def test_an_idempotency_key_used_for_something_else_is_refused(world: Any) -> None:
    await give(world, response_id="r", critique="louder", idempotency_key="k1")
    error = await give(world, 409, response_id="r", critique="softer", idempotency_key="k1")
    assert error["code"] == "idempotency_key_reused"
    assert len(await logged(world)) == 1


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"critique": "x"}, "set response_id or conversation_id"),
    ({"response_id": "r"}, "nothing is said"),
    ({"response_id": "r", "critique": "   "}, "nothing is said"),
    ({"response_id": "r", "rating": 1.5}, "less than or equal to 1"),
    ({"response_id": "r", "rating": True}, "rating must be a number"),
    ({"response_id": "r", "rating": {"colour": -1}}, "greater than or equal to 0"),
    ({"response_id": "r", "rating": {}}, "rating"),
    ({"response_id": "r", "label": "yes"}, "valid boolean"),
    ({"response_id": "r", "preferred_over": "r"}, "name the worse one"),
    ({"conversation_id": "c", "preferred_over": "r"}, "needs response_id"),
    ({"response_id": "r", "comparison": "clearer"}, "comparison needs preferred_over"),
    ({"response_id": "../r", "label": True}, "response_id"),
    ({"response_id": "r", "critique": "x", "mood": "bad"}, "unknown field 'mood'"),
    ({"response_id": "r", "critique": "x" * 9000}, "at most 8192"),
    ({"response_id": "r", "critique": 5}, "valid string"),
    ({"response_id": "r", "tags": [""]}, "at least 1"),
    ({"response_id": "r", "refinement": []}, "at least 1"),
]


async def test_malformed_feedback_gets_a_sentence_and_leaves_the_log_alone(world: Any) -> None:
    for body, sentence in MALFORMED:
        error = await give(world, 400, **body)
        assert sentence in error["message"], (body, error)
    assert await logged(world) == []
