"""Grammar masks as tensors, built once per distinct state and looked up by row in every step."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass

import torch

from anyloop.modality import Modality
from anyloop.sequence import OutputGrammar, SequenceLayout
from services.hosts.interface import HostError

FREE_ROW = 0  # the mask of requests without a grammar


@dataclass(frozen=True)
class _Compiled:
    """A grammar in its first state, and the table rows of its states outside of code spans."""

    grammar: OutputGrammar
    begin: int
    outside: int


class MaskTable:
    """Additive masks `[rows, vocabulary]` (0 or -inf), one row per grammar state of every set of modalities seen.

    A code span is never cut: where the tokens left do not hold a whole span, its opening token is masked. So an answer
    that ends for length ends in text, or right behind a medium.
    """

    def __init__(self, layout: SequenceLayout, vocabulary: int) -> None:
        self.layout = layout
        self._vocabulary = max(vocabulary, layout.vocabulary_size)
        self.rows = torch.zeros(1, self._vocabulary)
        self._row_of: dict[int, int] = {}  # id of the grammar's mask array -> row; compiled grammars keep the arrays
        self._compiled: dict[frozenset[Modality], _Compiled] = {}
        self._lock = threading.Lock()  # requests arrive on other threads than the engine's
        self.every = frozenset({Modality.TEXT, *layout.codes})
        self.longest_span = max((span.length + 2 for span in layout.codes.values()), default=0)

    def answer(self, modalities: list[str] | None, max_tokens: int) -> AnswerState:
        """The state of a new answer. Raises HostError INVALID_ARGUMENT on modalities the model cannot answer in."""
        allowed = self.every if not modalities else frozenset(self._modality(name) for name in modalities)
        shortest = min(1 if m is Modality.TEXT else self.layout.codes[m].length + 2 for m in allowed)
        if max_tokens < shortest:
            raise HostError(
                "INVALID_ARGUMENT",
                f"an answer in {', '.join(sorted(allowed))} takes at least {shortest} tokens, and only "
                f"{max_tokens} fit: raise max_tokens or shorten the prompt",
            )
        return AnswerState(self, allowed)

    def _modality(self, name: str) -> Modality:
        if name not in self.every:
            raise HostError(
                "INVALID_ARGUMENT",
                f"this model does not answer in {name!r}; it answers in {', '.join(sorted(self.every))}",
            )
        return Modality(name)

    def fitting(self, allowed: frozenset[Modality], remaining: int) -> frozenset[Modality]:
        return frozenset(m for m in allowed if m is Modality.TEXT or self.layout.codes[m].length + 2 <= remaining)

    def compiled(self, allowed: frozenset[Modality]) -> _Compiled:
        found = self._compiled.get(allowed)
        if found is not None:
            return found
        with self._lock:
            if allowed not in self._compiled:
                self._compiled[allowed] = self._compile(allowed)
            return self._compiled[allowed]

    def _compile(self, allowed: frozenset[Modality]) -> _Compiled:
        grammar = OutputGrammar(self.layout, allowed, self._vocabulary)
        begin = self._add(grammar)
        after = copy.copy(grammar)  # shares the mask arrays, has a state of its own
        after.advance(self.layout.end)
        outside = self._add(after)
        for span in self.layout.codes.values():
            after.advance(span.open)
            self._add(after)
            for _ in range(span.length):
                after.advance(span.begin)
            self._add(after)
            after.advance(span.close)
        return _Compiled(grammar, begin, outside)

    def row_of(self, grammar: OutputGrammar) -> int:
        return self._row_of[id(grammar.mask())]

    def _add(self, grammar: OutputGrammar) -> int:
        mask = grammar.mask()
        if id(mask) not in self._row_of:
            row = torch.zeros(1, self._vocabulary).masked_fill_(~torch.from_numpy(mask), float("-inf"))
            self._row_of[id(mask)] = len(self.rows)
            self.rows = torch.cat([self.rows, row])
        return self._row_of[id(mask)]


class AnswerState:
    """Where one answer stands in the grammar."""

    def __init__(self, table: MaskTable, allowed: frozenset[Modality]) -> None:
        self._table = table
        self._allowed = allowed
        self._compiled = table.compiled(allowed)
        self._grammar = copy.copy(self._compiled.grammar)

    def row(self, remaining: int) -> int:
        """The table row that masks the next token, when `remaining` tokens may still be produced."""
        row = self._table.row_of(self._grammar)
        if remaining >= self._table.longest_span or self._grammar.tokens_to_close:
            return row
        fitting = self._table.fitting(self._allowed, remaining)
        if fitting == self._allowed:
            return row
        narrowed = self._table.compiled(fitting)
        return narrowed.begin if row == self._compiled.begin else narrowed.outside

    def advance(self, token: int) -> None:
        self._grammar.advance(token)
