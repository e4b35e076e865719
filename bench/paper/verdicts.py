"""The targets of the experiment against what was measured: pure arithmetic on the tables' own figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anyloop.world import SUBTASKS
from bench.paper.results import GENERATION
from bench.paper.tables import MOONSHOT, RATIO_TARGET

SEEDS, FURTHER_ROUNDS = 3, 3
Verdict = dict[str, Any]


def verdicts(tables: Mapping[str, Any]) -> list[Verdict]:
    """`met` compares the means; None: not measured, or not all of it. `sure`: the whole interval is on that side; of
    several that must all hold: all are surely met, or one is surely missed."""
    return [
        *_every_subtask(tables["main"]),
        *_ratios(tables["ratios"]),
        *_quarter(tables["ablation"]),
        *_rounds(tables["rounds"]),
        *_seeds(tables["main"]),
    ]


def _every_subtask(main: list[dict[str, Any]]) -> Iterator[Verdict]:
    rows = {row["method"]: row for row in main}
    for method in ("llf-dpo", "llf-ppo"):
        target = f"{method}: gain over the base in all eight subtasks"
        if method not in rows or not rows[method]["gain"]:
            yield _unmeasured(target)
            continue
        gains = {name: rows[method]["gain"][name] for name in SUBTASKS}
        up = [name for name, gain in gains.items() if gain["mean"] > 0]
        certain = [name for name, gain in gains.items() if gain["low"] > 0]
        missed = [gain["high"] <= 0 for gain in gains.values()]
        least = min(gains, key=lambda name: float(gains[name]["mean"]))
        measured = (
            f"positive in {len(up)} of {len(gains)}, by the whole interval in {len(certain)}; "
            f"least in {least}: {points(gains[least])}"
        )
        yield _judged(target, measured, [one in up for one in gains], [one in certain for one in gains], missed)


def _ratios(rows: list[dict[str, Any]]) -> Iterator[Verdict]:
    """The least of the optimisers' ratios decides; where binary feedback gains nothing any language gain is beyond."""
    if not rows:
        yield _unmeasured(f"mean gain of language feedback at least {RATIO_TARGET:g} times the binary one")
        yield _unmeasured(f"moonshot: {MOONSHOT:g} times, the paper's best claim")
        return
    pairs = " and ".join(f"{row['language'][0]} over {row['binary'][0]}" for row in rows)
    least = "; the least decides" if len(rows) > 1 else ""
    measured = "; ".join(_ratio_in_words(row) for row in rows) + least
    number = rows[0]["annotations"]
    for target, key in (
        (f"{pairs}: mean gain at least {RATIO_TARGET:g} times the binary one, {number} annotations each", "beyond"),
        (f"moonshot: {MOONSHOT:g} times, the paper's best claim ({pairs})", "beyond_moonshot"),
    ):
        held = [row["language_gain"]["mean"] > 0 and row[key]["mean"] >= 0 for row in rows]
        certain = [row["language_gain"]["low"] > 0 and row[key]["low"] >= 0 for row in rows]
        missed = [row["language_gain"]["high"] <= 0 or row[key]["high"] < 0 for row in rows]
        yield _judged(target, measured, held, certain, missed)


def _ratio_in_words(row: Mapping[str, Any]) -> str:
    gains = f"{points(row['language_gain'])} against {points(row['binary_gain'])}"
    ratio = times(row["ratio"]) if row["ratio"] else "the binary gains nothing"
    return f"{row['language'][0]} {ratio} ({gains})"


def _quarter(rows: list[dict[str, Any]]) -> Iterator[Verdict]:
    target = "25 % of the language feedback at least as good as 100 % binary in all generation tasks"
    quarters = [row for row in rows if row["share"] == 0.25 and row.get("over_all_binary")]
    if not quarters:
        yield _unmeasured(target)
    for row in quarters:
        over = {name: row["over_all_binary"][name] for name in GENERATION}
        held = [name for name, one in over.items() if one["mean"] >= 0]
        certain, missed = [one["low"] >= 0 for one in over.values()], [one["high"] < 0 for one in over.values()]
        each = ", ".join(f"{name} {points(one)}" for name, one in over.items())
        measured = f"in {len(held)} of {len(over)}: {each}"
        yield _judged(f"{row['method']}: {target}", measured, [name in held for name in over], certain, missed)


def _rounds(rows: list[dict[str, Any]]) -> Iterator[Verdict]:
    target = f"{FURTHER_ROUNDS} further rounds, each better than the one before"
    further = [row for row in rows if row["round"] > 1 and row["step"]][:FURTHER_ROUNDS]
    if not further:
        yield _unmeasured(target)
        return
    measured = ", ".join(f"round {row['round']}: {points(row['step']['mean'])}" for row in further)
    steps = [row["step"]["mean"] for row in further]
    better = [step["mean"] > 0 for step in steps]
    if len(further) < FURTHER_ROUNDS:
        measured = f"{measured} (no more were run)"
        if all(better):
            yield _verdict(target, measured, None, None)
            return
    yield _judged(target, measured, better, [step["low"] > 0 for step in steps], [step["high"] <= 0 for step in steps])


def _seeds(main: list[dict[str, Any]]) -> Iterator[Verdict]:
    target = f"at least {SEEDS} seeds of every method"
    if not main:
        yield _unmeasured(target)
        return
    fewest = min(main, key=lambda row: len(row["seeds"]))
    number = len(fewest["seeds"])
    yield _verdict(target, f"{number} (of {fewest['method']})", number >= SEEDS, True)


def points(found: Mapping[str, Any]) -> str:
    """`+12.3 [+8.0, +16.6]`: percentage points with the 95 % interval."""
    return f"{100 * found['mean']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


def times(found: Mapping[str, Any]) -> str:
    """`3.4 x [2.1, 6.0]`; without a bound on either side where the data give none."""
    if found["low"] is None:
        return f"{found['mean']:.2f} x [no bound: the binary gain is not told from 0]"
    return f"{found['mean']:.2f} x [{found['low']:.2f}, {found['high']:.2f}]"


def _judged(
    target: str, measured: str, held: Sequence[bool], certain: Sequence[bool], missed: Sequence[bool]
) -> Verdict:
    """Of parts that must all hold: which do by their means, surely do, and surely do not."""
    met = all(held)
    return _verdict(target, measured, met, all(certain) if met else any(missed))


def _verdict(target: str, measured: str, met: bool | None, sure: bool | None) -> Verdict:
    return {"target": target, "measured": measured, "met": met, "sure": sure}


def _unmeasured(target: str) -> Verdict:
    return _verdict(target, "not measured", None, None)
