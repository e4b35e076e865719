"""Draws the next token of every row.

Every draw is the inverse of a cumulative distribution at one uniform number of the request's own generator, so a seed
gives the same answer whatever else is in the batch.
"""

from __future__ import annotations

import torch

from services.policy.engine.request import Request

_HEAD = 64  # most top-p sets lie within this many tokens; rows that need more are sorted whole


def sample(logits: torch.Tensor, requests: list[Request]) -> tuple[list[int], list[float]]:
    """`[batch, vocabulary]` masked float32 logits to one token per row and its log-probability.

    The log-probability is that of the whole distribution at temperature 1, whatever the sampling parameters.
    """
    tokens = logits.argmax(-1)
    plain = [row for row, r in enumerate(requests) if r.sampling.temperature > 0 and not r.sampling.filtered]
    filtered = [row for row, r in enumerate(requests) if r.sampling.temperature > 0 and r.sampling.filtered]
    if plain:
        _draw_plain(logits, requests, plain, tokens)
    if filtered:
        _draw_filtered(logits, requests, filtered, tokens)
    chosen = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    return tokens.tolist(), chosen.tolist()


def _probabilities(logits: torch.Tensor, requests: list[Request], rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 probabilities at each row's temperature, and one uniform number per row, `[rows, 1]`."""
    temperature = torch.tensor([[requests[row].sampling.temperature] for row in rows])
    picked = logits if len(rows) == len(requests) else logits[rows]
    # The largest logit becomes 0 before the division, or a tiny temperature overflows.
    probabilities = ((picked - picked.amax(-1, keepdim=True)) / temperature).softmax(-1).double()
    return probabilities, torch.tensor([[requests[row].rng.random()] for row in rows], dtype=torch.float64)


def _draw_plain(logits: torch.Tensor, requests: list[Request], rows: list[int], tokens: torch.Tensor) -> None:
    probabilities, uniform = _probabilities(logits, requests, rows)
    cumulative = probabilities.cumsum(-1)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]
    # Rounding may point behind the last token: the likeliest one, already in `tokens`, stands in.
    _place(tokens, rows, drawn, drawn < logits.shape[-1])


def _draw_filtered(logits: torch.Tensor, requests: list[Request], rows: list[int], tokens: torch.Tensor) -> None:
    probabilities, uniform = _probabilities(logits, requests, rows)
    vocabulary = logits.shape[-1]
    top_p = torch.tensor([[requests[row].sampling.top_p] for row in rows], dtype=torch.float64)
    top_k = torch.tensor([[requests[row].sampling.top_k or vocabulary] for row in rows])
    head = min(vocabulary, _HEAD)
    values, order = probabilities.topk(head)
    if head < vocabulary and bool(((values.sum(-1, keepdim=True) < top_p) & (top_k > head)).any()):
        values, order = probabilities.sort(dim=-1, descending=True)
    cumulative = values.cumsum(-1)
    # A token stays while the mass before it is below top_p, so the one that crosses the line is in.
    kept = ((cumulative - values) < top_p) & (torch.arange(values.shape[-1]) < top_k)
    kept[:, 0] = True
    last = kept.sum(-1, keepdim=True) - 1
    drawn = torch.searchsorted(cumulative, uniform * cumulative.gather(1, last), right=True)
    _place(tokens, rows, order.gather(1, torch.minimum(drawn, last))[:, 0], None)


def _place(tokens: torch.Tensor, rows: list[int], drawn: torch.Tensor, valid: torch.Tensor | None) -> None:
    index = torch.tensor(rows)
    tokens[index] = drawn if valid is None else torch.where(valid, drawn, tokens[index])
