"""Ends an answer at a string of the client's choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class StopStrings:
    """Feed it the text tokens of an answer; it says when one of the strings has appeared.

    The token that completes a string is still part of the output. Cutting the text before the string is up to whoever
    turns tokens into text, so the log keeps exactly what was sampled.
    """

    def __init__(self, strings: Sequence[str], decode: Callable[[list[int]], str], text_tokens: int) -> None:
        self._strings = tuple(strings)
        self._decode = decode
        self._text_tokens = text_tokens
        # A token is at least one byte, a character at most four: this many tokens hold the longest string.
        self._window = 4 * max(len(text) for text in strings) + 4
        self._tail: list[int] = []
        self.found = ""  # the string that ended the answer

    def feed(self, token: int) -> bool:
        """True when `token` completed a stop string, which `found` then names."""
        if token >= self._text_tokens:  # a medium stands between: no string spans it
            self._tail.clear()
            return False
        self._tail = [*self._tail[-self._window :], token]
        text = self._decode(self._tail)
        self.found = next((string for string in self._strings if string in text), "")
        return bool(self.found)
