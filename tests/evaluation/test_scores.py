"""AMU and AMG against the rows that eval-anything publishes (arXiv 2412.15838): every row comes out within rounding."""

import pytest

from anyloop.evaluation.scores import CATEGORIES, PAIRS, SLOTS, Generation, amg, amu, overall

PUBLISHED = [
    # model, alpha, S_T, S_V, S_A, synergy T-V, T-A, V-A, AMG
    ("Gemini-1.5-Pro", 0.227, 9.45, 9.65, 6.76, 0.44, 0.47, 0.66, 3.05),
    ("GPT-4o", 0.266, 9.51, 9.70, 6.64, 0.51, 0.56, 0.67, 3.96),
    ("Chameleon-7B", 0.156, 4.21, 9.39, 4.66, 0.45, 0.47, 0.70, 1.57),
    ("Llama-3.1-8B", 0.231, 7.69, 9.58, 5.15, 0.55, 0.59, 0.65, 3.08),
]


def made(alpha: float, following: tuple[float, ...], synergy: tuple[float, ...]) -> Generation:
    return Generation(alpha, dict(zip(SLOTS, following, strict=True)), dict(zip(PAIRS, synergy, strict=True)))


@pytest.mark.parametrize("row", PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_published_amg_comes_out(row: tuple[str, float, float, float, float, float, float, float, float]) -> None:
    _, alpha, text, visual, audio, tv, ta, va, published = row
    assert round(amg(made(alpha, (text, visual, audio), (tv, ta, va))), 2) == published


def test_published_amu_comes_out() -> None:
    gemini = dict(zip(CATEGORIES, (5.36, 5.67, 6.70, 6.70), strict=True))
    assert amu(gemini) == pytest.approx(6.1075)
    assert f"{amu(gemini):.2f}" == "6.11"


def test_amg_runs_from_0_to_30_and_overall_is_the_mean_of_both() -> None:
    assert amg(made(1.0, (10, 10, 10), (1, 1, 1))) == 30
    assert amg(made(0.0, (10, 10, 10), (1, 1, 1))) == 0
    assert amg(made(1.0, (10, 0, 0), (0.5, 0, 0))) == 2.5  # 1/2 * (10 + 0) * 0.5
    assert overall(6.0, 3.0) == 4.5


@pytest.mark.parametrize(
    ("alpha", "following", "synergy", "said"),
    [
        (1.1, (1, 1, 1), (1, 1, 1), "selection is 1.1"),
        (1.0, (11, 1, 1), (1, 1, 1), "following of text is 11"),
        (1.0, (1, 1, 1), (1, -0.1, 1), "synergy of text and audio is -0.1"),
        (float("nan"), (1, 1, 1), (1, 1, 1), "selection is nan"),
    ],
)
def test_scores_out_of_range_are_refused(
    alpha: float, following: tuple[float, ...], synergy: tuple[float, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        made(alpha, following, synergy)


def test_missing_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="each of text, visual, audio"):
        Generation(1.0, {"text": 1.0}, dict.fromkeys(PAIRS, 1.0))
    with pytest.raises(ValueError, match="given: perception"):
        amu({"perception": 5.0})
    with pytest.raises(ValueError, match="between 1 and 10"):
        amu(dict.fromkeys(CATEGORIES, 0.5))
