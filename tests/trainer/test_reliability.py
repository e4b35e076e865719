"""Who is believed when a stated share of statements is wrong: on doubts drawn by hand and by chance."""

import numpy as np
import pytest

from trainer.batches import TokenSequence
from trainer.reliability import reliability
from trainer.statements import Statement

SEQUENCE = TokenSequence((1,), (2,))


def said(number: int, principal: str = "ada", verdict: bool | None = None, response: str = "") -> Statement:
    return Statement(f"f{number}", principal, response or f"r{number}", verdict, "words", (SEQUENCE,))


def drawn(lies: np.ndarray, rng: np.random.Generator) -> list[float]:
    """Honest statements are doubted by a nat, lies by eight."""
    return np.where(lies, rng.exponential(8.0, len(lies)), rng.exponential(0.7, len(lies))).tolist()


def test_scattered_lies_are_trimmed_and_the_honest_keep_their_weight() -> None:
    rng = np.random.default_rng(0)
    lies = np.arange(200) % 10 < 3
    found = reliability([said(n, f"p{n % 20}") for n in range(200)], drawn(lies, rng), 0.3)
    trust = np.array(found.trust)
    assert (trust[lies] < 0.2).mean() > 0.75
    assert trust[~lies].mean() > 0.9
    assert (trust == 0).sum() <= 60
    assert found.residual == pytest.approx(float(trust[lies].sum() / trust.sum()), abs=0.05)


def test_a_liar_is_known_by_the_lies_that_show_and_not_believed_in_those_that_do_not() -> None:
    rng = np.random.default_rng(1)
    names = [f"p{n % 20}" for n in range(140)] + ["eve"] * 30 + ["mallory"] * 30
    lies = np.array([name in ("eve", "mallory") for name in names])
    doubts = drawn(lies, rng)
    doubts[140] = 0.0  # a lie that the critique model would have told too
    statements = [said(n, name) for n, name in enumerate(names)]
    found = reliability(statements, doubts, 0.3)
    assert min(found.rates["eve"], found.rates["mallory"]) > 0.8
    assert max(rate for name, rate in found.rates.items() if name.startswith("p")) < 0.5
    assert found.trust[140] < 0.65
    alone = reliability([said(n, f"q{n}") for n in range(200)], doubts, 0.3)
    assert alone.trust[140] > 0.85


def test_where_nobody_lies_little_is_lost() -> None:
    rng = np.random.default_rng(2)
    doubts = drawn(np.zeros(200, dtype=bool), rng)
    found = reliability([said(n, f"p{n % 20}") for n in range(200)], doubts, 0.1)
    assert sum(found.trust) > 180


def test_no_more_than_the_stated_share_is_trimmed() -> None:
    doubts = [20.0] * 50 + [0.0] * 50
    found = reliability([said(n, f"p{n}") for n in range(100)], doubts, 0.2)
    assert found.trust.count(0.0) == 20
    assert all(one < 0.5 for one in found.trust[:50])  # the others weigh what they are believed


def test_a_verdict_that_others_contradict_is_believed_less() -> None:
    statements = [said(n, f"p{n}") for n in range(40)]
    statements += [said(100, "ada", True, "r"), said(101, "bob", True, "r"), said(102, "eve", False, "r")]
    statements += [said(103, "cy", False, "alone")]
    found = reliability(statements, [0.5] * 40 + [2.0] * 4, 0.2)
    believed = dict(zip(("ada", "bob", "eve", "cy"), found.trust[-4:], strict=True))
    assert believed["eve"] < believed["cy"] < believed["ada"]
    assert believed["ada"] == pytest.approx(believed["bob"])


def test_the_same_statements_are_judged_the_same_and_none_at_all_are_fine() -> None:
    statements, doubts = [said(n, f"p{n % 3}") for n in range(30)], [float(n % 7) for n in range(30)]
    assert reliability(statements, doubts, 0.3) == reliability(statements, doubts, 0.3)
    assert reliability([], [], 0.3).trust == []
