"""Draws the next token of every row.

Order of operations, that of transformers' and vLLM's processors: penalties and bias (penalties.py), then temperature,
top-k, top-p, min-p. A grammar mask is in the logits before any of it, as -inf, which nothing here lifts.

Every draw is the inverse of a cumulative distribution, in the order of the vocabulary, at a uniform number of the
request's own generator: a seed gives the same answer whatever else is in the batch, and tokens of equal probability
are kept or left out together.

Top-p needs no sorting. A token is in the nucleus if and only if the tokens likelier than it hold less than top_p: so a
token is drawn from all, and the few draws outside are repeated among what is likelier than them. What comes out is
distributed as a draw from the nucleus (rejection sampling; FlashInfer samples so too).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from services.policy.engine.penalties import adjust
from services.policy.engine.request import Request

_BLOCK = 64  # a draw looks for its block first, then inside the block
_GROUP = 16
_HEAD = 128  # the k-th largest of a row comes from the k largest up to here, from a selection beyond

TopLogprobs = list[tuple[int, float]]  # (token, log-probability), likeliest first


class Draws(NamedTuple):
    """One token per row. A row has alternatives in `top` only if its request asked for them."""

    tokens: list[int]
    logprobs: list[float]
    top: list[TopLogprobs | None]


def sample(logits: torch.Tensor, requests: Sequence[Request]) -> Draws:
    """`[batch, vocabulary]` masked float32 logits to one token per row, with its log-probability.

    Log-probabilities are those of the model under the grammar mask, at temperature 1 and without penalties and bias:
    what a trainer's ratio between two policies needs, whatever the sampling parameters were.
    """
    probabilities = logits.softmax(-1)
    # The largest logit less its log-probability: the logarithm of the sum of the exponentials.
    normaliser = logits.amax(-1) - probabilities.amax(-1).log()
    asked = _asked(logits, requests)
    drawn = [row for row, r in enumerate(requests) if r.sampling.temperature > 0]
    if len(drawn) == len(requests):
        tokens = _draw(_weights(asked, probabilities if asked is logits else None, requests), requests)
    else:
        tokens = _argmax(asked)
        if drawn:
            some = [requests[row] for row in drawn]
            known = probabilities[drawn] if asked is logits else None
            tokens[drawn] = _draw(_weights(asked[drawn], known, some), some)
    logprobs = logits.gather(1, tokens[:, None])[:, 0] - normaliser
    return Draws(tokens.tolist(), logprobs.tolist(), _alternatives(logits, normaliser, requests))


def _asked(logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """The logits with penalties and bias; the very same tensor when no row has any."""
    rows = [row for row, r in enumerate(requests) if r.sampling.adjusted]
    if not rows:
        return logits
    asked = logits.clone()
    adjust(asked, rows, requests)
    return asked


def _argmax(logits: torch.Tensor) -> torch.Tensor:
    """On the CPU numpy's takes a tenth of the time of torch's, which is no vector code."""
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.argmax(-1)


def _weights(logits: torch.Tensor, probabilities: torch.Tensor | None, requests: Sequence[Request]) -> torch.Tensor:
    """Probabilities at each row's temperature; `probabilities` are those at temperature 1 where they are known."""
    temperatures = [r.sampling.temperature for r in requests]
    if probabilities is not None and all(temperature == 1.0 for temperature in temperatures):
        return probabilities
    # The largest logit becomes 0 before the division, or a tiny temperature overflows.
    return (logits - logits.amax(-1, keepdim=True)).div_(_column(temperatures, logits)).softmax(-1)


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _draw(weights: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """One token per row, in proportion to those of the `[rows, vocabulary]` weights that its filters keep."""
    spare = -weights.shape[1] % _BLOCK
    if spare:
        weights = torch.nn.functional.pad(weights, (0, spare))
    if any(r.sampling.top_k for r in requests):
        weights = _keep_top_k(weights, requests)
    share = [r.sampling.top_p for r in requests]
    nucleus = any(top_p < 1.0 for top_p in share)
    if nucleus:  # before min-p takes its part: top_p is a share of what top-k left
        limit = weights.sum(-1, keepdim=True) * _column([p if p < 1.0 else float("inf") for p in share], weights)
        limit.clamp_(min=torch.finfo(limit.dtype).tiny)  # above 0: what nothing is likelier than is never outside
    if any(r.sampling.min_p for r in requests):
        least = weights.amax(-1, keepdim=True) * _column([r.sampling.min_p for r in requests], weights)
        weights = _from(weights, least)
    tokens = _invert(weights, requests)
    if nucleus:
        _repeat_outside(tokens, weights, limit, requests)
    return tokens


def _keep_top_k(weights: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    width = weights.shape[1]
    ks = [min(r.sampling.top_k or width, width) for r in requests]
    least = torch.zeros(len(ks), 1, dtype=weights.dtype, device=weights.device)
    head = [row for row, k in enumerate(ks) if k <= _HEAD]
    if head:
        picked = weights if len(head) == len(ks) else weights[head]
        index = torch.tensor([[ks[row] - 1] for row in head], device=weights.device)
        least[head] = _largest(picked, max(ks[row] for row in head)).gather(1, index)
    for row, k in enumerate(ks):
        if _HEAD < k < width:
            least[row] = weights[row].kthvalue(width - k + 1).values
    return _from(weights, least)


def _largest(weights: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` largest of each row, falling. They lie in the `count` groups with the largest maxima."""
    groups = weights.view(len(weights), _GROUP, -1)
    if count < groups.shape[2]:
        best = groups.amax(1).topk(count, sorted=False).indices
        weights = groups.gather(2, best[:, None].expand(-1, _GROUP, -1)).flatten(1)
    return weights.topk(count).values


def _from(weights: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """The weights that are `least` or more, 0 for the others. Arithmetic: masked_fill takes twenty times as long."""
    return torch.ge(weights, least, out=torch.empty_like(weights)).mul_(weights)


def _repeat_outside(
    tokens: torch.Tensor, weights: torch.Tensor, limit: torch.Tensor, requests: Sequence[Request]
) -> None:
    """Repeats, in place, the draws outside the nucleus: those with `limit` or more likelier than them."""
    rows = torch.arange(len(requests), device=tokens.device)
    drawn = tokens
    while True:
        weight = weights.gather(1, drawn[:, None])
        likelier = (weights - weight).relu_().sign_().mul_(weights)
        outside = (likelier.sum(-1, keepdim=True) >= limit)[:, 0].nonzero()[:, 0]
        if not len(outside):
            return
        rows, limit, weights = rows[outside], limit[outside], likelier[outside]
        drawn = _invert(weights, [requests[row] for row in rows.tolist()])
        tokens[rows] = drawn


def _invert(weights: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """The tokens at which the running sums of `[rows, blocks * _BLOCK]` weights pass a uniform share of the whole."""
    uniform = torch.tensor([[r.rng.random()] for r in requests], dtype=torch.float64, device=weights.device)
    rows = torch.arange(len(requests), device=weights.device)
    blocks = weights.view(len(requests), -1, _BLOCK)
    block, rest = _find(blocks.sum(-1), uniform)
    inside, _ = _find(blocks[rows, block], rest)
    return block * _BLOCK + inside


def _find(weights: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the running sum passes `share` `[rows, 1]` of the whole, and how far into that entry, as a share of it."""
    running = weights.double().cumsum(-1)
    target = share * running[:, -1:]
    # Rounding may put the target at the very end: the heaviest entry stands in, which is never an empty one.
    at = torch.searchsorted(running, target, right=True)
    at = torch.where(at < weights.shape[1], at, weights.argmax(-1, keepdim=True))
    weight = weights.gather(1, at).double()
    rest = (target - running.gather(1, at) + weight) / weight
    return at[:, 0], rest.clamp_(0.0, 1.0)


def _alternatives(
    logits: torch.Tensor, normaliser: torch.Tensor, requests: Sequence[Request]
) -> list[TopLogprobs | None]:
    top: list[TopLogprobs | None] = [None] * len(requests)
    rows = [row for row, r in enumerate(requests) if r.sampling.top_logprobs]
    if rows:
        most = min(max(requests[row].sampling.top_logprobs for row in rows), logits.shape[1])
        values, tokens = logits[rows].topk(most)
        found = zip(tokens.tolist(), (values - normaliser[rows][:, None]).tolist(), strict=True)
        for row, (ids, logprobs) in zip(rows, found, strict=True):
            pairs = list(zip(ids, logprobs, strict=True))[: requests[row].sampling.top_logprobs]
            top[row] = [pair for pair in pairs if pair[1] != float("-inf")]  # what the grammar forbids is no choice
    return top
