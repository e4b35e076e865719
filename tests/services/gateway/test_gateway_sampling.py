"""Sampling parameters and log-probabilities, as the openai client sends and reads them."""

from typing import Any

import pytest

from anyloop.config import TINY_OMNI
from anyloop.sequence import Sequencer
from protos.anyloop.v1 import types_pb2
from services.gateway.logprobs import TokenNames, render

HELLO = [{"role": "user", "content": "hello"}]


async def test_every_sampling_parameter_reaches_the_policy(world: Any) -> None:
    async with world.openai() as client:
        await client.chat.completions.create(
            model="anyloop",
            messages=HELLO,
            temperature=0.75,
            top_p=0.5,
            presence_penalty=-1.5,
            frequency_penalty=0.25,
            logit_bias={"17": -100, "3": 2.5},
            logprobs=True,
            top_logprobs=2,
            extra_body={"top_k": 40, "min_p": 0.125, "repetition_penalty": 1.25},
        )
    sampling = world.policy.requests[0].sampling
    assert sampling == types_pb2.SamplingParams(
        temperature=0.75,
        top_p=0.5,
        top_k=40,
        min_p=0.125,
        repetition_penalty=1.25,
        presence_penalty=-1.5,
        frequency_penalty=0.25,
        logit_bias={17: -100.0, 3: 2.5},
        top_logprobs=2,
    )


async def test_what_is_not_asked_for_stays_unset(world: Any) -> None:
    await world.say("hello")
    assert world.policy.requests[0].sampling == types_pb2.SamplingParams()


@pytest.mark.parametrize("stream", [False, True])
async def test_alternatives_come_with_every_token(world: Any, stream: bool) -> None:
    async with world.openai() as client:
        answer = await client.chat.completions.create(
            model="anyloop", messages=HELLO, logprobs=True, top_logprobs=3, stream=stream
        )
        chunks = [chunk async for chunk in answer] if stream else [answer]
    found = [entry for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert [entry.logprob for entry in found] == [-0.5] * 3
    assert [[top.logprob for top in entry.top_logprobs] for entry in found] == [[-0.5, -1.5, -2.5]] * 3
    assert [entry.top_logprobs[0].token for entry in found] == [entry.token for entry in found]


def test_the_bytes_of_split_characters_add_up_to_the_text() -> None:
    sequencer = Sequencer.from_pretrained(TINY_OMNI)
    text = "naïve 红 😀!"
    tokens = sequencer.encode_text(text)
    content = render(TokenNames(sequencer), tokens, [-1.0] * len(tokens))["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == text
    assert any("\N{REPLACEMENT CHARACTER}" in entry["token"] for entry in content)  # a part of a character on its own


def test_a_delimiter_has_a_name_and_no_bytes() -> None:
    sequencer = Sequencer.from_pretrained(TINY_OMNI)
    top = types_pb2.TopLogprobs(token_ids=[sequencer.layout.end], logprobs=[-0.25])
    (entry,) = render(TokenNames(sequencer), sequencer.encode_text("a"), [-1.5], [top])["content"]
    assert entry == {
        "token": "a",
        "logprob": -1.5,
        "bytes": [97],
        "top_logprobs": [{"token": "<|end|>", "logprob": -0.25, "bytes": None}],
    }
