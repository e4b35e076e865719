"""What a request asks to change in the model's logits: penalties on tokens it holds already, and a bias per token.

Only the entries that change are touched, so the cost goes with the length of the request and not with the vocabulary.
Everything here is finite: a token that the grammar forbids (-inf) stays forbidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from services.policy.engine.request import Request, Sampling

_LARGEST = 1e30  # what a tiny repetition penalty makes of a logit stays finite


class TokenCounts:
    """The distinct tokens of a request and how often its output holds each; follows the output as it grows."""

    def __init__(self, prompt: Sequence[int]) -> None:
        held = list(dict.fromkeys(prompt))
        self._index = {token: at for at, token in enumerate(held)}
        self._read = 0  # output tokens counted so far
        self._tokens = np.zeros(max(64, 2 * len(held)), np.int64)
        self._counts = np.zeros(len(self._tokens), np.float32)
        self._tokens[: len(held)] = held

    def follow(self, output: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `[distinct]` and their counts in `output` `[distinct]`: 0 for those of the prompt alone."""
        for token in output[self._read :]:
            at = self._index.setdefault(token, len(self._index))
            if at == len(self._tokens):
                self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._tokens[at] = token
            self._counts[at] += 1
        self._read = len(output)
        return self._tokens[: len(self._index)], self._counts[: len(self._index)]


def adjust(logits: torch.Tensor, rows: Sequence[int], requests: Sequence[Request]) -> None:
    """Applies, in place, what `requests[row]` asks for to each of `rows` of the `[batch, vocabulary]` float32 logits.

    Repetition penalty (arXiv 1909.05858, section 4.1, on prompt and output), then presence and frequency penalties
    (OpenAI's definition, on the output), then the bias.
    """
    _penalise(logits, [(row, requests[row]) for row in rows if requests[row].sampling.penalised])
    _bias(logits, [(row, requests[row].sampling) for row in rows if requests[row].sampling.logit_bias])


def _penalise(logits: torch.Tensor, asked: list[tuple[int, Request]]) -> None:
    if not asked:
        return
    flat, width = logits.view(-1), logits.shape[1]
    places, counts, entries = [], [], []
    for row, request in asked:
        if request.counts is None:
            request.counts = TokenCounts(request.prompt)
        tokens, times = request.counts.follow(request.output)
        places.append(tokens + row * width)
        counts.append(times)
        entries.append((request.sampling, len(tokens)))
    where = torch.from_numpy(np.concatenate(places)).to(flat.device)
    times_seen = torch.from_numpy(np.concatenate(counts)).to(flat.device)
    repetition, presence, frequency = _repeated(entries).to(flat.device)
    value = flat[where]
    value = torch.where(value > 0, value / repetition, value * repetition)
    value.clamp_(max=_LARGEST)
    flat[where] = value - presence * (times_seen > 0) - frequency * times_seen


def _repeated(entries: list[tuple[Sampling, int]]) -> torch.Tensor:
    """The three penalties `[3, entries]`, each row's repeated over its entries."""
    table = np.array([[s.repetition_penalty, s.presence_penalty, s.frequency_penalty] for s, _ in entries], np.float32)
    return torch.from_numpy(np.repeat(table.T, [count for _, count in entries], axis=1))


def _bias(logits: torch.Tensor, asked: list[tuple[int, Sampling]]) -> None:
    if asked:
        places = [row * logits.shape[1] + token for row, sampling in asked for token in sampling.logit_bias]
        values = [bias for _, sampling in asked for bias in sampling.logit_bias.values()]
        where = torch.tensor(places, device=logits.device)
        logits.view(-1)[where] += torch.tensor(values, dtype=logits.dtype, device=logits.device)
