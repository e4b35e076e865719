"""Stop strings are found wherever token borders fall; the text is cut before them, the log keeps every token."""

from __future__ import annotations

import pytest

from anyloop.config import TINY_OMNI
from anyloop.sequence import Sequencer
from anyloop.sequence.token_bytes import TokenBytes
from services.policy.engine.stop_strings import StopStrings
from services.policy.responses import Answer
from services.replica.generation import Portion

SEQUENCER = Sequencer.from_pretrained(TINY_OMNI)
BYTES = TokenBytes(SEQUENCER.tokenizer)
TEXT_TOKENS = SEQUENCER.layout.text_tokens


def _bytes(text: str) -> list[int]:
    """One token for each byte of `text`, which splits every character of more than one."""
    tokens = {BYTES.of(token): token for token in range(SEQUENCER.tokenizer.get_vocab_size())}
    return [tokens[bytes([byte])] for byte in text.encode()]


def _fed_until_found(tokens: list[int], *stops: str) -> tuple[int, str]:
    strings = StopStrings(stops, BYTES.of, TEXT_TOKENS)
    for count, token in enumerate(tokens, 1):
        if strings.feed(token):
            return count, strings.found
    return 0, ""


@pytest.mark.parametrize(
    ("text", "stop", "bytes_read"),
    [
        ("one STOP two", "STOP", 8),  # four tokens
        ("a😀b", "😀", 5),  # one character in four tokens
        ("né红x", "é红", 6),  # borders inside of both characters
        ("ééé!", "éé", 4),
        ("x" * 3000 + "END.", "END", 3003),
    ],
)
def test_a_stop_string_is_found_at_its_last_token(text: str, stop: str, bytes_read: int) -> None:
    assert _fed_until_found(_bytes(text), stop) == (bytes_read, stop)


def test_of_two_strings_the_first_to_be_whole_ends_the_answer() -> None:
    assert _fed_until_found(_bytes("say ENDING now"), "ENDING", "END") == (7, "END")
    assert _fed_until_found(_bytes("say END now"), "ENDING", "END now") == (11, "END now")


def test_of_two_strings_in_one_token_the_one_that_begins_first_is_named() -> None:
    strings = StopStrings(["ND", "EN"], {0: b"an END", 1: b""}.get, 2)
    assert not strings.feed(1)
    assert strings.feed(0)
    assert strings.found == "EN"


def test_half_a_character_is_no_stop_string() -> None:
    assert _fed_until_found(_bytes("aé")[:2], "\N{REPLACEMENT CHARACTER}") == (0, "")


def test_a_medium_stands_between() -> None:
    open_image = next(iter(SEQUENCER.layout.codes.values())).open
    assert _fed_until_found([*_bytes("ST"), open_image, *_bytes("OP")], "STOP") == (0, "")


@pytest.mark.parametrize("portion", [1, 3, 100])
async def test_the_text_ends_before_the_stop_string_and_no_log_probability_is_lost(portion: int) -> None:
    tokens = _bytes("red 红 circle红\nq")
    stop = "红\nq"
    count, _ = _fed_until_found(tokens, stop)
    assert count == len(tokens)
    answer = Answer(SEQUENCER, None, [stop])
    events = []
    for at in range(0, len(tokens), portion):
        some = tokens[at : at + portion]
        events += [event async for event in answer.feed(Portion(some, [-float(at + i) for i in range(len(some))]))]
    events += answer.finish()
    assert "".join(event.text.text for event in events) == "red 红 circle"
    assert [part.text for part in answer.message.parts] == ["red 红 circle"]
    sent = [token for event in events for token in event.text.token_ids]
    assert sent == tokens[: len(sent)]
    assert len(sent) >= len("red 红 circle".encode())
    assert [logprob for event in events for logprob in event.text.logprobs] == [-float(at) for at in range(len(sent))]
