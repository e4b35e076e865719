"""Ids of answers tell their conversation: feedback finds its response's partition from any gateway."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from anyloop.log import RESPONSES, Event
from anyloop.log.spool import SpooledWriter
from anyloop.log.sqlite_log import SqliteLog
from protos.anyloop.v1 import events_pb2, feedback_pb2, feedback_pb2_grpc, policy_pb2, policy_pb2_grpc, types_pb2
from services.gateway.feedback import FeedbackDesk
from services.gateway.keys import LOCAL_CALLER
from services.gateway.ledger import Ledger
from services.gateway.response_ids import NAME, carried_conversation, new_response_id
from trainer.intake import Intake
from trainer.join_store import JoinStore


@pytest.mark.parametrize(
    "conversation",
    ["talk-1", "c" * 86, new_response_id(), new_response_id("talk-1")],
    ids=["short", "longest", "an id", "an id that carries one"],
)
def test_an_id_carries_the_conversation_that_it_was_made_for(conversation: str) -> None:
    made = new_response_id(conversation)
    assert NAME.fullmatch(made)
    assert carried_conversation(made) == conversation


@pytest.mark.parametrize("conversation", ["", "c" * 87, "c" * 128])
def test_an_id_that_cannot_carry_one_is_a_plain_one(conversation: str) -> None:
    made = new_response_id(conversation)
    assert len(made) == 41
    assert carried_conversation(made) is None


@pytest.mark.parametrize("other", ["", "answer.7", "chatcmpl-1.talk", f"chatcmpl-{'0' * 32}", f"chatcmpl-{'0' * 32}."])
def test_other_peoples_ids_carry_nothing(other: str) -> None:
    assert carried_conversation(other) is None


async def forgetful(start: Any, first: Any) -> Any:
    """Another gateway on the same log, with an empty ledger."""
    await first.end()
    for path in (first.settings.home / "gateway").iterdir():
        path.unlink()
    return await start()


async def test_each_of_several_choices_is_keyed_by_its_conversation_from_any_gateway(start: Any) -> None:
    first = await start()
    told = (await first.say("hello", conversation_id="talk-1", n=3)).json()["choices"]
    untold = (await first.say("hello", n=2)).json()["choices"]
    second = await forgetful(start, first)
    for choice in told + untold:
        body = {"response_id": choice["response_id"], "critique": "louder"}
        taken = (await second.http.post("/v1/feedback", json=body)).json()
        assert taken["early"] is True
    keys = [record.event.key for record in await second.feedback()]
    assert sorted(keys) == sorted(["talk-1"] * 3 + [untold[0]["response_id"]] * 2)
    wrong = {"response_id": told[0]["response_id"], "conversation_id": "talk-2", "critique": "louder"}
    refused = await second.http.post("/v1/feedback", json=wrong)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "conversation_id")


async def test_an_answer_by_grpc_is_keyed_by_its_conversation_from_any_gateway(start: Any) -> None:
    first = await start()
    message = types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.ContentPart(text="hello")])
    async with first.channel() as channel:
        asked = policy_pb2.GenerateRequest(messages=[message], conversation_id="talk-1")
        (made,) = [
            event.started.response_id
            async for event in policy_pb2_grpc.PolicyServiceStub(channel).Generate(asked)
            if event.HasField("started")
        ]
    second = await forgetful(start, first)
    said = feedback_pb2.Feedback(response_id=made, critique="louder")
    async with second.channel() as channel:
        await feedback_pb2_grpc.FeedbackServiceStub(channel).SubmitFeedback(
            feedback_pb2.SubmitFeedbackRequest(feedback=said)
        )
    assert [record.event.key for record in await second.feedback()] == ["talk-1"]


async def test_a_clients_own_id_may_not_contradict_its_conversation(world: Any) -> None:
    message = types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.ContentPart(text="hello")])
    mine = new_response_id("talk-1")
    async with world.channel() as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        asked = policy_pb2.GenerateRequest(messages=[message], response_id=mine, conversation_id="talk-2")
        with pytest.raises(grpc.aio.AioRpcError, match="belongs to conversation 'talk-1'"):
            [event async for event in stub.Generate(asked)]
        asked.conversation_id = ""
        assert [event async for event in stub.Generate(asked)]
    assert world.policy.requests[-1].conversation_id == "talk-1"


async def test_feedback_before_its_response_meets_it_where_two_trainers_share_the_log(tmp_path: Path) -> None:
    made = {new_response_id(f"talk-{number}"): f"talk-{number}" for number in range(16)}
    with SqliteLog(tmp_path / "log.db") as log:
        log.ensure_topics()
        ledger = Ledger(tmp_path / "ledger.db")
        with SpooledWriter(lambda: SqliteLog(tmp_path / "log.db"), tmp_path / "outbox") as outbox:
            desk = FeedbackDesk(outbox, ledger, media=None)  # type: ignore[arg-type]
            for each in made:
                said = feedback_pb2.Feedback(response_id=each, critique="louder")
                await desk.submit(feedback_pb2.SubmitFeedbackRequest(feedback=said), LOCAL_CALLER)
            assert outbox.flush(20)
            desk.close()
        ledger.close()
        for each, talk in made.items():
            response = events_pb2.ResponseEvent(response_id=each, conversation_id=talk)
            log.append(RESPONSES, Event.wrap(response, key=talk, source="test", id=each))
        stores = [JoinStore(tmp_path / f"{name}.db") for name in ("one", "two")]
        intakes = [Intake(log, store) for store in stores]
        for _ in range(100):
            for intake in intakes:
                intake.poll(0.02)
            if sum(store.counts()["feedback"] for store in stores) == 16 and all(i.held() for i in intakes):
                break
        assert [len(intake.held()) for intake in intakes] == [2, 2]
        held = [(store, intake.held()) for store, intake in zip(stores, intakes, strict=True)]
        assert sum(store.ready(own)[0] for store, own in held) == 16
        for intake, store in zip(intakes, stores, strict=True):
            intake.close()
            store.close()
