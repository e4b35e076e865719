"""The targets of the experiment against what was measured: pure arithmetic on the tables' own figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from anyloop.world import SUBTASKS
from bench.paper.results import GENERATION

RATIO, MOONSHOT = 3.0, 5.83  # the second: the paper's best claim
SEEDS, FURTHER_ROUNDS = 3, 3
Verdict = dict[str, Any]


def verdicts(tables: Mapping[str, Any]) -> list[Verdict]:
    """`met` compares the means; None: not measured, or not all of it. `sure`: the whole interval is on that side."""
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
        least = min(gains, key=lambda name: float(gains[name]["mean"]))
        measured = (
            f"positive in {len(up)} of {len(gains)}, by the whole interval in {len(certain)}; "
            f"least in {least}: {points(gains[least])}"
        )
        yield _verdict(target, measured, len(up) == len(gains), len(certain) == len(gains))


def _ratios(rows: list[dict[str, Any]]) -> Iterator[Verdict]:
    for row in rows:
        pair = f"{' and '.join(row['language'])} over {' and '.join(row['binary'])}"
        target = f"{pair}: mean gain at least {RATIO:g} times the binary one, {row['annotations']} annotations each"
        gains = f"{points(row['language_gain'])} against {points(row['binary_gain'])}"
        if row["ratio"] is None:
            measured = f"{gains}: binary feedback gained nothing, so there is no ratio"
        else:
            measured = f"{times(row['ratio'])} ({gains})"
        beyond = row["beyond"]
        yield _verdict(target, measured, beyond["mean"] >= 0, beyond["low"] >= 0 or beyond["high"] < 0)
    if not rows:
        yield _unmeasured(f"mean gain of language feedback at least {RATIO:g} times the binary one")
        return
    best = rows[-1]  # the pair of both optimisers, if both were run
    target = f"moonshot: {MOONSHOT:g} times, the paper's best claim ({' and '.join(best['language'])})"
    if best["ratio"] is None:
        yield _verdict(target, "binary feedback gained nothing, so there is no ratio", None, None)
    else:
        found = best["ratio"]
        low, high = found["low"], found["high"]
        sure = None if low is None else low >= MOONSHOT or high < MOONSHOT
        yield _verdict(target, times(found), found["mean"] >= MOONSHOT, sure)


def _quarter(rows: list[dict[str, Any]]) -> Iterator[Verdict]:
    target = "25 % of the language feedback at least as good as 100 % binary in all generation tasks"
    quarters = [row for row in rows if row["share"] == 0.25 and row.get("over_all_binary")]
    if not quarters:
        yield _unmeasured(target)
    for row in quarters:
        over = {name: row["over_all_binary"][name] for name in GENERATION}
        held = [name for name, one in over.items() if one["mean"] >= 0]
        certain = [name for name, one in over.items() if one["low"] >= 0]
        each = ", ".join(f"{name} {points(one)}" for name, one in over.items())
        measured = f"in {len(held)} of {len(over)}: {each}"
        yield _verdict(f"{row['method']}: {target}", measured, len(held) == len(over), len(certain) == len(over))


def _rounds(rows: list[dict[str, Any]]) -> Iterator[Verdict]:
    target = f"{FURTHER_ROUNDS} further rounds, each better than the one before"
    further = [row for row in rows if row["round"] > 1 and row["step"]][:FURTHER_ROUNDS]
    if not further:
        yield _unmeasured(target)
        return
    measured = ", ".join(f"round {row['round']}: {points(row['step']['mean'])}" for row in further)
    better = [row["step"]["mean"]["mean"] > 0 for row in further]
    whole = len(further) == FURTHER_ROUNDS
    certain = all(row["step"]["mean"]["low"] > 0 for row in further)
    met = False if not all(better) else (True if whole else None)
    yield _verdict(target, measured if whole else f"{measured} (no more were run)", met, certain if whole else None)


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


def _verdict(target: str, measured: str, met: bool | None, sure: bool | None) -> Verdict:
    return {"target": target, "measured": measured, "met": met, "sure": sure}


def _unmeasured(target: str) -> Verdict:
    return _verdict(target, "not measured", None, None)
