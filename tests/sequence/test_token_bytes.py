"""Every token has its true bytes, whatever the tokenizer writes them as."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from anyloop.config import TINY_OMNI
from anyloop.sequence import Sequencer
from anyloop.sequence.token_bytes import TokenBytes


@pytest.mark.parametrize("text", ["plain", " two  spaces\n\ttab", "naïve 红圈 😀", "\x00\x7f\xad\u0120"])
def test_the_bytes_of_the_tokens_are_those_of_the_text(text: str) -> None:
    sequencer = Sequencer.from_pretrained(TINY_OMNI)
    pieces = [TokenBytes(sequencer.tokenizer).of(token) for token in sequencer.encode_text(text)]
    assert b"".join(piece or b"" for piece in pieces) == text.encode()


def test_byte_tokens_and_spaces_of_sentencepiece() -> None:
    vocabulary = {"<unk>": 0, "\u2581red": 1, "<0xC3>": 2, "<0xA9>": 3}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    of = TokenBytes(tokenizer).of
    assert [of(token) for token in (1, 2, 3, 4, 5)] == [b" red", b"\xc3", b"\xa9", b"</s>", None]
