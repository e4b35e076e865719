"""Ends an answer at a string of the client's choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class StopStrings:
    """Feed it the tokens of an answer; it says when one of the strings has appeared.

    It compares bytes: a token may hold a part of a character, and UTF-8 is never found inside of another character.
    The token that completes a string is still part of the output. Cutting the text before the string is up to whoever
    turns tokens into text, so the log keeps exactly what was sampled.
    """

    def __init__(self, strings: Sequence[str], bytes_of: Callable[[int], bytes | None], text_tokens: int) -> None:
        """`bytes_of` says what a text token stands for; tokens from `text_tokens` on are no text."""
        self._strings = {text.encode(): text for text in strings}
        self._bytes_of = bytes_of
        self._text_tokens = text_tokens
        self._longest = max(map(len, self._strings))
        self._tail = b""
        self.found = ""  # the string that ended the answer

    def feed(self, token: int) -> bool:
        """True when `token` completed a stop string, which `found` then names: of several, the one that began first."""
        if token >= self._text_tokens:  # a medium stands between: no string spans it
            self._tail = b""
            return False
        tail = self._tail + (self._bytes_of(token) or b"")
        begins = {tail.find(string): text for string, text in self._strings.items() if string in tail}
        self._tail = tail[-self._longest :]
        self.found = begins[min(begins)] if begins else ""
        return bool(begins)
