"""One response: its events in order, its media real, its record in the log before its end is told."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from anyloop.log import RESPONSES
from anyloop.media.formats import read_audio, read_image, read_video, write_image
from anyloop.media.store import to_proto
from protos.anyloop.v1 import policy_pb2, types_pb2
from protos.anyloop.v1.policy_pb2_grpc import PolicyServiceStub
from services.rpc.attempt import metadata_of
from tests.services.running_replica import Running, message, running, settings_for, user

TEXT, IMAGE = types_pb2.MODALITY_TEXT, types_pb2.MODALITY_IMAGE


@pytest.fixture
async def policy(tmp_path: Path, random_omni: Path) -> AsyncIterator[Running]:
    async with running(settings_for(tmp_path, random_omni)) as replica:
        yield replica


async def ask(policy: Running, request: policy_pb2.GenerateRequest) -> list[policy_pb2.GenerateResponse]:
    return [event async for event in PolicyServiceStub(policy.channel).Generate(request, timeout=30)]


def sampling(seed: int = 1, **values: float | int) -> types_pb2.SamplingParams:
    return types_pb2.SamplingParams(seed=seed, **values)


async def test_a_text_answer_streams_in_order_and_stands_in_the_log_before_it_is_finished(policy: Running) -> None:
    request = policy_pb2.GenerateRequest(
        messages=[message(types_pb2.ROLE_SYSTEM, ["Be brief."]), user("Draw two ", "small red circles.")],
        modalities=[TEXT],
        sampling=sampling(max_tokens=20),
        conversation_id="talk-1",
        principal="ann",
        metadata={"app": "test"},
    )
    events = []
    async for event in PolicyServiceStub(policy.channel).Generate(request, timeout=30):
        events.append(event)
        if event.HasField("finished"):
            spooled = list((policy.settings.home / "spool" / "policy").iterdir())
            assert spooled
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert set(kinds[1:-1]) == {"text"}
    finished = events[-1].finished
    shown = "".join(event.text.text for event in events)
    assert finished.message.parts[0].text == shown
    assert finished.usage.prompt_tokens == events[0].started.prompt_tokens == len(finished.prompt_token_ids)
    assert finished.usage.completion_tokens == len(finished.output_token_ids) == len(finished.output_logprobs)
    assert [(span.version, span.begin) for span in finished.version_spans] == [("policy-000000", 0)]
    assert events[0].started.policy_version == "policy-000000"

    (logged,) = await policy.events(RESPONSES, 1)
    assert logged.response_id == events[0].started.response_id
    assert (logged.conversation_id, logged.principal, dict(logged.metadata)) == ("talk-1", "ann", {"app": "test"})
    assert list(logged.messages) == list(request.messages)
    assert logged.response == finished.message
    assert logged.prompt_token_ids == finished.prompt_token_ids
    assert logged.output_token_ids == finished.output_token_ids
    assert logged.output_logprobs == finished.output_logprobs
    assert logged.version_spans == finished.version_spans
    assert logged.finish_reason == finished.finish_reason
    assert (logged.sampling.temperature, logged.sampling.top_p, logged.sampling.seed) == (1.0, 1.0, 1)
    assert list(logged.modalities) == [TEXT]


@pytest.mark.parametrize("modality", ["image", "audio", "video"])
async def test_a_media_answer_is_a_file_that_plays(policy: Running, modality: str) -> None:
    number = types_pb2.Modality.Value(f"MODALITY_{modality.upper()}")
    events = await ask(
        policy,
        policy_pb2.GenerateRequest(messages=[user("Show me.")], modalities=[number], sampling=sampling(max_tokens=20)),
    )
    media = [event.media for event in events if event.HasField("media")]
    assert media
    assert all(part.modality == number for part in media)
    data = policy.store.get(media[0].media.sha256)
    if modality == "image":
        assert read_image(data).shape == (256, 256, 3)
    elif modality == "audio":
        assert len(read_audio(data)[0]) == 6144
    else:
        assert read_video(data)[0].shape == (8, 256, 256, 3)
    parts = events[-1].finished.message.parts
    assert [part.media.sha256 for part in parts] == [part.media.sha256 for part in media]


async def test_text_and_media_of_one_answer_keep_their_order(policy: Running) -> None:
    for seed in range(20):
        events = await ask(
            policy, policy_pb2.GenerateRequest(messages=[user("Mix.")], sampling=sampling(seed, max_tokens=120))
        )
        finished = events[-1].finished
        sent = [event for event in events if event.WhichOneof("event") in ("text", "media")]
        merged: list[str] = []
        for event in sent:
            if event.HasField("text") and merged and merged[-1].startswith("text:"):
                merged[-1] += event.text.text
            else:
                merged.append(f"text:{event.text.text}" if event.HasField("text") else event.media.media.sha256)
        parts = [f"text:{p.text}" if p.HasField("text") else p.media.sha256 for p in finished.message.parts]
        assert merged == parts
        if sum(part.startswith("text:") for part in parts) > 1 and len(parts) > 3:
            return
    raise AssertionError("no seed mixed text and media")


async def test_a_stored_picture_is_part_of_the_prompt(policy: Running) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    stored = to_proto(policy.store.put(write_image(picture), "image/png"))
    request = policy_pb2.GenerateRequest(
        messages=[user("What is in ", stored, "?")], modalities=[TEXT], sampling=sampling(max_tokens=4)
    )
    with_image = (await ask(policy, request))[-1].finished
    without = (await ask(policy, policy_pb2.GenerateRequest(messages=[user("What is in ?")], sampling=sampling())))[-1]
    assert with_image.usage.prompt_tokens >= without.finished.usage.prompt_tokens + 17


async def test_a_seed_makes_an_answer_repeatable_and_without_one_a_seed_is_drawn_and_logged(policy: Running) -> None:
    request = policy_pb2.GenerateRequest(messages=[user("Hi")], modalities=[TEXT], sampling=sampling(7, max_tokens=12))
    first, second = (await ask(policy, request))[-1].finished, (await ask(policy, request))[-1].finished
    assert first.output_token_ids == second.output_token_ids
    await ask(policy, policy_pb2.GenerateRequest(messages=[user("Hi")], modalities=[TEXT]))
    logged = await policy.events(RESPONSES, 3)
    assert {event.sampling.seed for event in logged} - {7}
    assert all(event.sampling.HasField("seed") and event.sampling.HasField("max_tokens") for event in logged)


async def test_rollouts_take_rendered_prompts_and_leave_media_as_codes_and_the_log_alone(policy: Running) -> None:
    prompt = list((await ask(policy, policy_pb2.GenerateRequest(messages=[user("Hi")])))[-1].finished.prompt_token_ids)
    events = await ask(
        policy,
        policy_pb2.GenerateRequest(
            prompt_token_ids=prompt,
            modalities=[IMAGE],
            sampling=sampling(max_tokens=19),
            tokens_only=True,
            unlogged=True,
            response_id="rollout-1",
        ),
    )
    assert [event.WhichOneof("event") for event in events] == ["started", "finished"]
    assert list(events[-1].finished.prompt_token_ids) == prompt
    assert len(events[-1].finished.output_token_ids) >= 18
    await asyncio.sleep(0.3)
    logged = await policy.events(RESPONSES, 1)
    assert [event.response_id for event in logged if event.response_id == "rollout-1"] == []


async def test_a_cancelled_answer_is_logged_with_what_was_generated_and_its_slot_is_free(policy: Running) -> None:
    call = PolicyServiceStub(policy.channel).Generate(
        policy_pb2.GenerateRequest(
            response_id="cut-1", messages=[user("Go on")], modalities=[TEXT], sampling=sampling(max_tokens=360)
        )
    )
    async for event in call:
        if event.HasField("text"):
            call.cancel()
            break
    (logged,) = await policy.events(RESPONSES, 1)
    assert logged.response_id == "cut-1"
    assert logged.finish_reason == types_pb2.FINISH_REASON_CANCELLED
    assert 0 < len(logged.output_token_ids) == len(logged.output_logprobs) < 360
    assert logged.version_spans[-1].end == len(logged.output_token_ids)
    status = await policy.until(lambda status: not status.requests_running)
    assert status.weights[0].running_requests == 0


async def test_a_deadline_ends_the_answer_in_the_engine_too(policy: Running) -> None:
    request = policy_pb2.GenerateRequest(messages=[user("Go on")], modalities=[TEXT], sampling=sampling(max_tokens=360))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in PolicyServiceStub(policy.channel).Generate(request, timeout=0.15):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await policy.until(lambda status: not status.requests_running)


async def test_a_stop_string_ends_the_answer_and_is_not_shown(policy: Running) -> None:
    request = policy_pb2.GenerateRequest(messages=[user("Hi")], modalities=[TEXT], sampling=sampling(3, max_tokens=60))
    text = (await ask(policy, request))[-1].finished.message.parts[0].text
    stop = next(letter for letter in text[5:] if letter.isascii() and letter.isalnum())
    request.sampling.stop.append(stop)
    events = await ask(policy, request)
    assert events[-1].finished.finish_reason == types_pb2.FINISH_REASON_STOP
    shown = "".join(event.text.text for event in events)
    assert shown == text[: text.index(stop)] == "".join(part.text for part in events[-1].finished.message.parts)


async def test_many_requests_are_answered_together(policy: Running) -> None:
    requests = [
        policy_pb2.GenerateRequest(
            response_id=f"r{seed}", messages=[user("Hi")], modalities=[TEXT], sampling=sampling(seed, max_tokens=16)
        )
        for seed in range(24)
    ]
    answers = await asyncio.gather(*(ask(policy, request) for request in requests))
    assert [events[0].started.response_id for events in answers] == [f"r{seed}" for seed in range(24)]
    logged = await policy.events(RESPONSES, 24)
    assert {event.response_id for event in logged} == {f"r{seed}" for seed in range(24)}


async def test_two_attempts_at_one_answer_are_two_events_and_say_which(policy: Running) -> None:
    request = policy_pb2.GenerateRequest(
        messages=[user("Hi")], modalities=[TEXT], sampling=sampling(max_tokens=3), response_id="resp-1"
    )
    for asked_before in (0, 1):
        call = PolicyServiceStub(policy.channel).Generate(request, timeout=30, metadata=metadata_of(asked_before))
        assert [event async for event in call]
    first, second = await policy.events(RESPONSES, 2)
    assert first.response_id == second.response_id == "resp-1"
    assert 0 == first.attempt < second.attempt
    assert [record.event.id for record in policy.log.read(RESPONSES)] == ["resp-1", f"resp-1/{second.attempt}"]
