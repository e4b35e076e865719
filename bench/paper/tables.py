"""From the results of the cells to the figures of the tables. Pure: records in, JSON out; shares and gains are 0-1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

from bench.paper.intervals import Values, estimate, ratio
from bench.paper.plan import COUNTERPART, METHODS, Cell, Graph, Plan
from bench.paper.results import BASE, Arm, Records, Results, combined

RATIO_TARGET, MOONSHOT = 3.0, 5.83  # the second: the paper's best claim
# Never the mean of both: an optimiser that binary feedback does harm to would make that ratio look larger.
PAIRED = ("llf-dpo", "llf-ppo")
Row = dict[str, Any]


def tables(plan: Plan, graph: Graph, records: Records) -> dict[str, Any]:
    """Rows without any result are left out."""
    results = Results(records)
    return {
        "main": main_table(plan, results),
        "ratios": ratios(plan, results),
        "ablation": ablation(plan, results, _telling(records)),
        "informative": informative(plan, results, records),
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

    `beyond`: language gain − 3 × binary gain, a negative binary gain counting as none; it has an interval also where
    the ratio has none. `beyond_moonshot`: the same with the paper's best claim.
    """
    rows = []
    for name in PAIRED:
        language, binary = Arm(name, plan.annotations), Arm(COUNTERPART[name], plan.annotations)
        seeds = results.seeds(BASE, language, binary)
        if not seeds:
            continue
        above, below = (_gains(results, arm, seeds) for arm in (language, binary))
        quotient = ratio(above, below)
        rows.append(
            {
                "language": [language.method],
                "binary": [binary.method],
                "annotations": plan.annotations,
                "seeds": seeds,
                "language_gain": estimate(above).to_json(),
                "binary_gain": estimate(below).to_json(),
                "ratio": quotient and quotient.to_json(),
                "beyond": _beyond(above, below, RATIO_TARGET),
                "beyond_moonshot": _beyond(above, below, MOONSHOT),
            }
        )
    return rows


def ablation(plan: Plan, results: Results, tell: float | None) -> list[Row]:
    """Gain by number of annotations, language and binary, and what language has over all of the binary annotations.

    `tell`: the share of preferences that tell something; a row's is how many of its annotations do.
    """
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
                        "tell": _tells(arm, tell),
                        "seeds": results.seeds(arm, BASE),
                        "gain": results.gain(arm),
                    }
                    if method == language:
                        row["over_all_binary"] = results.gain(arm, whole)
                    rows.append(row)
    return rows


def informative(plan: Plan, results: Results, records: Records) -> list[Row]:
    """Language feedback beside binary feedback at as many annotations *that tell something*.

    A preference between two answers with as many faults tells nothing, a critique always tells what is wrong. The row
    takes the fewest binary annotations of which at least as many tell as there are critiques, else the most there are.
    `tell`: the share of preferences that tell, of the seeds' answers.
    """
    tell = _telling(records)
    rows: list[Row] = []
    for name in plan.ablated if tell is not None else ():
        language, whole = Arm(name, plan.annotations), COUNTERPART[name]
        counts = sorted({plan.count(share) for share in (*plan.binary_shares, 1.0)})
        arms = [arm for arm in (Arm(whole, count) for count in counts) if results.seeds(arm, language, BASE)]
        if not arms or tell is None:
            continue
        enough = [arm for arm in arms if tell * arm.annotations >= language.annotations]
        binary = enough[0] if enough else arms[-1]
        seeds = results.seeds(BASE, language, binary)
        rows.append(
            {
                "language": name,
                "annotations": language.annotations,
                "binary": whole,
                "binary_annotations": binary.annotations,
                "tell": tell,
                "binary_informative": tell * binary.annotations,
                "enough": bool(enough),
                "seeds": seeds,
                "language_gain": estimate(_gains(results, language, seeds)).to_json(),
                "binary_gain": estimate(_gains(results, binary, seeds)).to_json(),
                "over": results.gain(language, binary)["mean"],
            }
        )
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


def _gains(results: Results, arm: Arm, seeds: Sequence[int]) -> list[Values]:
    """Over the base, of these seeds."""
    by_seed = dict(zip(results.seeds(arm, BASE), results.differences(arm), strict=True))
    return [by_seed[seed] for seed in seeds]


def _beyond(above: Sequence[Values], below: Sequence[Values], times: float) -> dict[str, Any]:
    """`above` − `times` × max(`below`, 0), which is the lesser of `above` and `above` − `times` × `below`."""
    plain, less = estimate(above), estimate(combined([above, below], [1.0, -times]))
    # Of all subtasks together there always are bounds: only ratios may lack them.
    assert None not in (plain.low, plain.high, less.low, less.high)
    return replace(
        plain,
        mean=min(plain.mean, less.mean),
        low=min(plain.low or 0.0, less.low or 0.0),
        high=min(plain.high or 0.0, less.high or 0.0),
        seeds=tuple(map(min, plain.seeds, less.seeds)),
    ).to_json()


def _telling(records: Records) -> float | None:
    """The share of preferences that tell something, mean over seeds; None where no cell says."""
    found = [
        record["metrics"]["preferences_that_tell"]
        for cell, record in records.items()
        if cell.kind == "answers" and cell.round == 1 and "preferences_that_tell" in record["metrics"]
    ]
    return mean(found) if found else None


def _tells(arm: Arm, tell: float | None) -> float | None:
    """About how many of an arm's annotations tell something."""
    if arm.method in COUNTERPART:
        return float(arm.annotations)
    return None if tell is None else tell * arm.annotations


def _with_needs(graph: Graph, cell: Cell) -> set[Cell]:
    found = {cell}
    for one in graph[cell].values():
        found |= _with_needs(graph, one)
    return found


def _figure(records: Records, cell: Cell, name: str) -> float:
    return float(records[cell][name]) if cell in records else 0.0
