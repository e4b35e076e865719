"""Which statements are believed when a stated share of them is wrong. Pure.

A statement carries a doubt: how many nats a critique model that has not learned from it finds it worse than what it
would say itself (see `trainer.robust`). Honest statements have little of it, wrong ones much, and nobody says how much:
a mixture of two exponential distributions is fitted by expectation-maximisation, with a rate of wrong statements per
principal (beta prior, with the stated share as its mean), and the verdicts of others on the same answer as evidence
(Dawid and Skene 1979). Then the stated share with the highest chance of being wrong is trimmed, as far as that chance
is above one half, and the rest weighs what it is believed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.statements import Statement

PRIOR = 4.0  # statements that the prior on a principal's rate counts for
_STEPS = 60
_RATES = (0.02, 0.98)  # nobody is beyond doubt, in either direction
_HONEST_SCALE = 1.0  # nats: less doubt than this tells nothing; people word things in their own way


@dataclass(frozen=True)
class Reliability:
    """`wrong`: the chance that each statement is wrong; `trust`: what it weighs, 0 where it is trimmed.

    `residual`: the share of wrong statements expected in what is left, by weight. `rates`: per principal, the share of
    wrong statements.
    """

    wrong: list[float]
    trust: list[float]
    residual: float
    rates: dict[str, float]


def reliability(statements: Sequence[Statement], doubts: Sequence[float], share: float) -> Reliability:
    """`share`: of wrong or hostile statements, as the operator states it, in (0, 0.5]."""
    if not statements:
        return Reliability([], [], 0.0, {})
    doubt = np.asarray(doubts, dtype=float)
    names = sorted({one.principal for one in statements})
    who = np.array([names.index(one.principal) for one in statements])
    rates = np.full(len(names), share)
    order = np.sort(doubt)
    cut = max(1, round((1 - share) * len(order)))
    honest = max(_HONEST_SCALE, float(order[: -(-len(order) // 2)].mean()))  # one half is honest, whatever was stated
    lying = max(2 * honest, float(order[cut:].mean()) if cut < len(order) else 0.0)
    wrong = np.full(len(doubt), share)
    for _ in range(_STEPS):
        rate = np.clip(rates[who], *_RATES)
        evidence = np.log(honest / lying) + doubt * (1 / honest - 1 / lying)
        evidence += _dissent(statements, who, np.clip(rates, *_RATES)) + np.log(rate / (1 - rate))
        wrong = 1 / (1 + np.exp(-np.clip(evidence, -30, 30)))
        rates = (np.bincount(who, wrong, len(names)) + PRIOR * share) / (np.bincount(who, minlength=len(names)) + PRIOR)
        honest = max(_HONEST_SCALE, float((1 - wrong) @ doubt / max((1 - wrong).sum(), 1e-9)))
        lying = max(2 * honest, float(wrong @ doubt / max(wrong.sum(), 1e-9)))
    trust = 1 - wrong
    most = round(share * len(doubt))
    suspects = [int(i) for i in np.lexsort((np.arange(len(doubt)), -wrong))[:most] if wrong[i] > 0.5]
    trust[suspects] = 0.0
    left = float(trust.sum())
    return Reliability(
        wrong.tolist(),
        trust.tolist(),
        float(trust @ wrong) / left if left else 0.0,
        {name: float(rate) for name, rate in zip(names, rates, strict=True)},
    )


def _dissent(statements: Sequence[Statement], who: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Evidence, in nats, that each verdict is wrong, from the verdicts of other principals on the same answer.

    Another who is wrong with chance e and agrees makes it less likely by log((1 - e) / e); one who does not, more.
    """
    votes: dict[str, list[int]] = {}
    for i, one in enumerate(statements):
        if one.verdict is not None:
            votes.setdefault(one.response_id, []).append(i)
    evidence = np.zeros(len(statements))
    for mine in votes.values():
        for i in mine:
            for j in mine:
                if who[i] != who[j]:
                    strength = float(np.log((1 - rates[who[j]]) / rates[who[j]]))
                    evidence[i] += -strength if statements[i].verdict is statements[j].verdict else strength
    return evidence
