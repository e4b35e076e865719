"""A critique streams as text, is whole in its last event, and stands in the log when it is about a logged response."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from anyloop.log import CRITIQUES
from anyloop.media.formats import write_image
from anyloop.media.store import to_proto
from anyloop.registry import announce
from anyloop.registry.announce import PROMOTED
from anyloop.sequence import Sequencer, Turn
from protos.anyloop.v1 import critique_pb2, scoring_pb2, types_pb2
from protos.anyloop.v1.critique_pb2_grpc import CritiqueServiceStub
from tests.services.running_replica import SERVING, Running, message, publish_variant, running, settings_for, user


@pytest.fixture
async def critic(tmp_path: Path, random_omni: Path) -> AsyncIterator[Running]:
    async with running(settings_for(tmp_path, random_omni), "critique") as replica:
        yield replica


async def ask(critic: Running, request: critique_pb2.CritiqueRequest) -> list[critique_pb2.CritiqueResponse]:
    return [event async for event in CritiqueServiceStub(critic.channel).Critique(request, timeout=30)]


def about(*answer: str | types_pb2.MediaRef, **fields: object) -> critique_pb2.CritiqueRequest:
    return critique_pb2.CritiqueRequest(
        messages=[user("Draw a red circle.")],
        response=message(types_pb2.ROLE_ASSISTANT, answer),
        sampling=types_pb2.SamplingParams(seed=3, max_tokens=20),
        **fields,
    )


async def test_a_critique_of_a_picture_streams_and_is_logged(critic: Running) -> None:
    pixels = np.full((64, 64, 3), 200, dtype=np.uint8)
    picture = to_proto(critic.store.put(write_image(pixels), "image/png"))
    events = await ask(critic, about("Here: ", picture, response_id="resp-1", conversation_id="talk-1"))
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1], set(kinds[1:-1])) == ("started", "finished", {"text"})
    finished = events[-1].finished
    assert finished.critique == "".join(event.text.text for event in events).strip()
    assert events[0].started.critique_version == "critique-000000"
    assert [span.version for span in finished.version_spans] == ["critique-000000"]
    (logged,) = await critic.events(CRITIQUES, 1)
    assert (logged.response_id, logged.conversation_id) == ("resp-1", "talk-1")
    assert (logged.critique, logged.critique_version) == (finished.critique, "critique-000000")
    assert logged.critique_id == events[0].started.critique_id


async def test_a_rendered_prompt_gives_the_same_critique_and_no_event(critic: Running, random_omni: Path) -> None:
    whole = (await ask(critic, about("no")))[-1].finished
    sequencer = Sequencer.from_pretrained(random_omni)
    prompt = sequencer.critique_prompt([Turn("user", ("Draw a red circle.",))], ["no"])
    sampling = types_pb2.SamplingParams(seed=3, max_tokens=20)
    request = critique_pb2.CritiqueRequest(prompt_token_ids=prompt, sampling=sampling)
    assert (await ask(critic, request))[-1].finished == whole
    await asyncio.sleep(0.3)
    assert list(critic.log.read(CRITIQUES)) == []


async def test_scores_equal_what_the_critic_sampled(critic: Running, random_omni: Path) -> None:
    sequencer = Sequencer.from_pretrained(random_omni)
    prompt = sequencer.critique_prompt([Turn("user", ("Draw a red circle.",))], ["no"])
    finished = (await ask(critic, about("no")))[-1].finished
    sequence = scoring_pb2.ScoreSequence(
        prompt_token_ids=prompt,
        output_token_ids=finished.output_token_ids,
        modalities=[types_pb2.MODALITY_TEXT],
        max_tokens=20,
    )
    request = scoring_pb2.ScoreRequest(sequences=[sequence], grammar=True)
    scored = await CritiqueServiceStub(critic.channel).Score(request, timeout=30)
    assert scored.version == "critique-000000"
    assert list(scored.scores[0].logprobs) == pytest.approx(list(finished.output_logprobs), abs=1e-4)


async def test_the_critique_lineage_swaps_by_itself(critic: Running, other_omni: Path) -> None:
    version = publish_variant(critic.registry, "critique", other_omni, "critique-000000")
    policy_version = publish_variant(critic.registry, "policy", other_omni, "")
    announce(critic.log, "policy", policy_version, PROMOTED, decided_by="gate")
    announce(critic.log, "critique", version, PROMOTED, decided_by="trainer")
    await critic.until_serving(version)
    assert (await ask(critic, about("no")))[0].started.critique_version == version
    assert await critic.health("anyloop.v1.CritiqueService") == SERVING


@pytest.mark.parametrize(
    ("request_message", "words"),
    [
        (critique_pb2.CritiqueRequest(messages=[user("Hi")]), "response is missing"),
        (critique_pb2.CritiqueRequest(response=message(3, ["no"])), "messages is empty"),
        (critique_pb2.CritiqueRequest(messages=[user("Hi")], response=message(3, [])), "response says nothing"),
        (critique_pb2.CritiqueRequest(prompt_token_ids=[1], messages=[user("Hi")]), "not both"),
    ],
)
async def test_each_fault_of_a_request_is_named(
    critic: Running, request_message: critique_pb2.CritiqueRequest, words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(critic, request_message)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in str(caught.value.details())


async def test_too_long_an_answer_is_turned_away_before_it_is_read(critic: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(critic, about("abc " * 5_000))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "characters and this model holds 384 tokens" in str(caught.value.details())
