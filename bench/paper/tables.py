"""From the results of the cells to the figures of the tables. Pure: records in, JSON out; shares and gains are 0-1."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from bench.paper.intervals import Values, estimate, ratio
from bench.paper.plan import COUNTERPART, METHODS, Cell, Graph, Plan
from bench.paper.results import BASE, Arm, Records, Results, combined

RATIO_TARGET = 3.0
PAIRS = (("llf-dpo",), ("llf-ppo",), ("llf-dpo", "llf-ppo"))  # the last: the mean of both over the mean of both
Row = dict[str, Any]


def tables(plan: Plan, graph: Graph, records: Records) -> dict[str, Any]:
    """Rows without any result are left out."""
    results = Results(records)
    return {
        "main": main_table(plan, results),
        "ratios": ratios(plan, results),
        "ablation": ablation(plan, results),
        "rounds": rounds(plan, results),
        "costs": costs(plan, graph, records),
        "settings": settings(plan, results),
    }


def main_table(plan: Plan, results: Results) -> list[Row]:
    """Every method with all annotations, after one round: how often it is right, and its gain over the base."""
    arms = [BASE, *(Arm(name, plan.annotations) for name in METHODS if name in plan.methods and name != "base")]
    return [
        {
            "method": arm.method,
            "annotations": arm.annotations,
            "seeds": results.seeds(arm),
            "prompts": results.prompts(arm),
            "success": results.success(arm),
            "gain": None if arm == BASE else results.gain(arm),
        }
        for arm in arms
        if results.seeds(arm)
    ]


def ratios(plan: Plan, results: Results) -> list[Row]:
    """Mean gain of language feedback over that of binary feedback with as many annotations, optimiser by optimiser.

    `beyond`: language gain − 3 × binary gain, which has an interval also where the ratio has none.
    """
    rows = []
    for names in PAIRS:
        language = [Arm(name, plan.annotations) for name in names]
        binary = [Arm(COUNTERPART[name], plan.annotations) for name in names]
        seeds = results.seeds(BASE, *language, *binary)
        if not seeds:
            continue
        above, below = (_mean_gain(results, arms, seeds) for arms in (language, binary))
        quotient = ratio(above, below)
        rows.append(
            {
                "language": [arm.method for arm in language],
                "binary": [arm.method for arm in binary],
                "annotations": plan.annotations,
                "seeds": seeds,
                "language_gain": estimate(above).to_json(),
                "binary_gain": estimate(below).to_json(),
                "ratio": quotient and quotient.to_json(),
                "beyond": estimate(combined([above, below], [1.0, -RATIO_TARGET])).to_json(),
            }
        )
    return rows


def ablation(plan: Plan, results: Results) -> list[Row]:
    """Gain by number of annotations, language and binary, and what language has over all of the binary annotations."""
    rows = []
    for language in plan.ablated:
        whole = Arm(COUNTERPART[language], plan.annotations)
        for method, shares in ((language, plan.language_shares), (whole.method, plan.binary_shares)):
            for share in shares:
                arm = Arm(method, plan.count(share))
                if results.seeds(arm, BASE):
                    row = {
                        "pair": language,
                        "method": method,
                        "share": share,
                        "annotations": arm.annotations,
                        "seeds": results.seeds(arm, BASE),
                        "gain": results.gain(arm),
                    }
                    if method == language:
                        row["over_all_binary"] = results.gain(arm, whole)
                    rows.append(row)
    return rows


def rounds(plan: Plan, results: Results) -> list[Row]:
    """Round after round of one method: gain over the base, and over the round before."""
    rows: list[Row] = []
    before = BASE
    for number in range(1, plan.rounds + 1):
        arm = Arm(plan.line, plan.annotations, number)
        if results.seeds(arm, BASE):
            rows.append(
                {
                    "round": number,
                    "method": plan.line,
                    "annotations": number * plan.annotations,
                    "seeds": results.seeds(arm, BASE),
                    "success": results.success(arm),
                    "gain": results.gain(arm),
                    "step": results.gain(arm, before),
                }
            )
        before = arm
    return rows


def costs(plan: Plan, graph: Graph, records: Records) -> list[Row]:
    """Seconds on one thread and peak memory, means over seeds: of the cell itself, and with the work that it shares."""
    rows = []
    for name in METHODS:
        cells = [one for one in records if one.kind == name and one.round == 1 and one.evaluate]
        cells = [one for one in cells if one.annotations == (0 if name == "base" else plan.annotations)]
        if not cells or (name not in plan.methods and name != "base"):
            continue
        works = [_with_needs(graph, cell) for cell in cells]
        rows.append(
            {
                "method": name,
                "seconds": mean(records[cell]["seconds"] for cell in cells),
                "seconds_with_shared": mean(sum(_figure(records, one, "seconds") for one in work) for work in works),
                "peak_rss_bytes": max(_figure(records, one, "peak_rss_bytes") for work in works for one in work),
            }
        )
    return rows


def settings(plan: Plan, results: Results) -> dict[str, dict[str, Any]]:
    """What each method was run with."""
    arms = [Arm(name, plan.annotations) for name in plan.methods if name != "base"]
    return {arm.method: results.settings(arm) for arm in arms if results.seeds(arm)}


def _mean_gain(results: Results, arms: Sequence[Arm], seeds: Sequence[int]) -> list[Values]:
    """The mean of the arms' gains, of these seeds."""
    each = []
    for arm in arms:
        by_seed = dict(zip(results.seeds(arm, BASE), results.differences(arm), strict=True))
        each.append([by_seed[seed] for seed in seeds])
    return combined(each, [1 / len(arms)] * len(arms))


def _with_needs(graph: Graph, cell: Cell) -> set[Cell]:
    found = {cell}
    for one in graph[cell].values():
        found |= _with_needs(graph, one)
    return found


def _figure(records: Records, cell: Cell, name: str) -> float:
    return float(records[cell][name]) if cell in records else 0.0
