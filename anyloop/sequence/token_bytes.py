"""The bytes that one text token stands for, also where it is only a part of a character.

Decoding a token alone loses them: half a character decodes to U+FFFD. Byte-level tokenizers (GPT-2's) write each byte
as a printable character of a fixed alphabet; SentencePiece ones write spaces as U+2581 and single bytes as `<0xNN>`.
"""

from __future__ import annotations

import re

from tokenizers import Tokenizer


def _alphabet() -> dict[str, int]:
    """GPT-2's `bytes_to_unicode`, reversed: printable bytes are themselves, the others follow from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


_ALPHABET = _alphabet()
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {token: str(added.content) for token, added in tokenizer.get_added_tokens_decoder().items()}
        # The letter of a space and that of the null byte: every byte-level vocabulary has the whole alphabet.
        self._byte_level = all(tokenizer.token_to_id(letter) is not None for letter in ("\u0120", "\u0100"))

    def of(self, token: int) -> bytes | None:
        """None for an id that is no text token."""
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return None
        if self._byte_level:
            return bytes(_ALPHABET[letter] for letter in piece)
        byte = _BYTE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else str(piece).replace("\u2581", " ").encode()
