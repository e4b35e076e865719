"""The official openai client, unchanged, against a running gateway."""

import base64
from types import ModuleType
from typing import Any

import openai
import pytest


def data_url(data: bytes, mime_type: str) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(data).decode()}"


async def test_text_completion_has_ids_usage_and_the_version_that_answered(world: Any, fake: ModuleType) -> None:
    async with world.openai() as client:
        done = await client.chat.completions.create(model="anyloop", messages=[{"role": "user", "content": "hello"}])
    assert done.choices[0].message.content == "you said hello"
    assert done.choices[0].finish_reason == "stop"
    assert done.system_fingerprint == fake.VERSION
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (7, 3, 10)
    assert done.id == world.policy.requests[0].response_id
    assert world.policy.requests[0].principal == "anonymous"


async def test_stream_has_the_id_in_its_first_chunk_and_usage_in_its_last(world: Any) -> None:
    async with world.openai() as client:
        stream = await client.chat.completions.create(
            model="anyloop",
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].id == world.policy.requests[0].response_id
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "you said hello"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 10
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_image_input_by_data_url_reaches_the_policy_as_a_stored_reference(world: Any, fake: ModuleType) -> None:
    parts = [
        {"type": "text", "text": "what is it"},
        {"type": "image_url", "image_url": {"url": data_url(fake.RED, "image/png"), "detail": "low"}},
    ]
    async with world.openai() as client:
        await client.chat.completions.create(model="anyloop", messages=[{"role": "user", "content": parts}])
    media = world.policy.requests[0].messages[0].parts[1].media
    assert media.mime_type == "image/png"
    assert world.store.get(media.sha256) == fake.RED


async def test_sound_input_and_sound_output_keep_openai_shapes(world: Any, fake: ModuleType) -> None:
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(fake.TONE).decode(), "format": "wav"}}
    async with world.openai() as client:
        messages: list[Any] = [{"role": "user", "content": [sound]}]
        done = await client.chat.completions.create(
            model="anyloop", messages=messages, modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"}
        )
        audio = done.choices[0].message.audio
        assert base64.b64decode(audio.data) == fake.TONE
        assert audio.transcript == "you said "
        # As OpenAI's guide has it, the next turn names the sound by its id.
        messages += [{"role": "assistant", "audio": {"id": audio.id}}, {"role": "user", "content": "again"}]
        await client.chat.completions.create(model="anyloop", messages=messages)
    assert world.store.get(world.policy.requests[1].messages[1].parts[0].media.sha256) == fake.TONE


async def test_generated_image_is_a_content_part_that_can_be_loaded_and_sent_back(world: Any, fake: ModuleType) -> None:
    async with world.openai() as client:
        done = await client.chat.completions.create(
            model="anyloop",
            messages=[{"role": "user", "content": "draw"}],
            extra_body={"modalities": ["text", "image"]},
        )
        message = done.choices[0].message
        assert message.content == "you said draw"
        assert [part["type"] for part in message.content_parts] == ["text", "image_url"]
        assert message.images == message.content_parts[1:]
        picture = await world.http.get(message.images[0]["image_url"]["url"])
        assert (picture.content, picture.headers["content-type"]) == (fake.RED, "image/png")
        turns = [{"role": "user", "content": "draw"}, message, {"role": "user", "content": "bluer"}]
        await client.chat.completions.create(model="anyloop", messages=turns)
    back = world.policy.requests[1].messages[1].parts
    assert [part.WhichOneof("part") for part in back] == ["text", "media"]


async def test_media_alone_leave_content_null_and_come_as_data_urls_on_request(world: Any, fake: ModuleType) -> None:
    async with world.openai() as client:
        done = await client.chat.completions.create(
            model="anyloop",
            messages=[{"role": "user", "content": "move"}],
            extra_body={"modalities": ["video"], "media_format": "b64"},
        )
    message = done.choices[0].message
    assert message.content is None
    assert message.videos[0]["video_url"]["url"] == data_url(fake.CLIP, "video/mp4")


async def test_images_generate_gives_urls_and_base64(world: Any, fake: ModuleType) -> None:
    async with world.openai() as client:
        by_url = await client.images.generate(model="anyloop", prompt="red", n=2)
        inline = await client.images.generate(model="anyloop", prompt="red", response_format="b64_json")
    assert (await world.http.get(by_url.data[1].url)).content == fake.RED
    assert len({image.response_id for image in by_url.data}) == 2
    assert base64.b64decode(inline.data[0].b64_json) == fake.RED


async def test_speech_answers_with_a_wav_file(world: Any, fake: ModuleType) -> None:
    async with world.openai() as client:
        reply = await client.audio.speech.create(model="anyloop", input="a low tone", voice="alloy")
    assert reply.content == fake.TONE
    assert reply.response.headers["x-response-id"] == world.policy.requests[0].response_id


async def test_choices_have_ids_and_seeds_of_their_own(world: Any) -> None:
    async with world.openai() as client:
        done = await client.chat.completions.create(
            model="anyloop", messages=[{"role": "user", "content": "hello"}], n=3, seed=11, temperature=0.5, stop="x"
        )
    requests = world.policy.requests
    assert sorted(request.sampling.seed for request in requests) == [11, 12, 13]
    assert {request.sampling.temperature for request in requests} == {0.5}
    assert list(requests[0].sampling.stop) == ["x"]
    assert len({choice.response_id for choice in done.choices}) == 3
    assert done.usage.completion_tokens == 9


async def test_streamed_choices_come_under_one_id(world: Any) -> None:
    async with world.openai() as client:
        stream = await client.chat.completions.create(
            model="anyloop", messages=[{"role": "user", "content": "hello"}], n=2, stream=True
        )
        chunks = [chunk async for chunk in stream]
    texts = {0: "", 1: ""}
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "you said hello", 1: "you said hello"}
    assert len({chunk.id for chunk in chunks}) == 1


async def test_models_lists_the_serving_name_and_the_resident_versions(world: Any, fake: ModuleType) -> None:
    async with world.openai() as client:
        assert [model.id async for model in client.models.list()] == ["anyloop", fake.VERSION]
        assert (await client.models.retrieve(fake.VERSION)).owned_by == "anyloop"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-5")
        with pytest.raises(openai.NotFoundError, match="no model"):
            await client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "hi"}])
        await client.chat.completions.create(model="policy-000001", messages=[{"role": "user", "content": "hi"}])
    assert world.policy.requests[0].policy_version == "policy-000001"


async def test_client_raises_its_own_exceptions_for_upstream_failures(world: Any) -> None:
    async with world.openai() as client:
        for words, expected in (
            ("too long", openai.BadRequestError),
            ("busy", openai.RateLimitError),
            ("drained", openai.InternalServerError),
        ):
            with pytest.raises(expected):
                await client.chat.completions.create(model="anyloop", messages=[{"role": "user", "content": words}])
        stream = await client.chat.completions.create(
            model="anyloop", messages=[{"role": "user", "content": "break off"}], stream=True
        )
        with pytest.raises(openai.APIError, match="no policy replica"):
            [chunk async for chunk in stream]
