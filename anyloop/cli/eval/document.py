"""The evaluation as one JSON document: what `--json` prints and `--out` keeps as eval.json."""

from collections.abc import Mapping
from typing import Any

from anyloop.cli.eval.plan import Measured, Plan
from anyloop.evaluation.duel import Duel
from anyloop.evaluation.generation import GenerationReport, most
from anyloop.evaluation.intervals import CONFIDENCE
from anyloop.evaluation.scores import overall
from anyloop.evaluation.success import Count
from anyloop.evaluation.understanding import UnderstandingReport


def document(
    plan: Plan, ours: Measured, theirs: Measured | None = None, duels: Mapping[str, Duel] | None = None
) -> dict[str, Any]:
    """The first version's figures stand at the top; with another, its own under `against` and the comparison under
    `duel`, whole and by subtask."""
    found = {
        **_measured(ours),
        "split": plan.split,
        "seed": plan.seed,
        "prompts": plan.prompts if isinstance(plan.prompts, int) else str(plan.prompts),
        "samples": plan.samples,
        "temperature": plan.temperature,
        "judge": plan.judge,
        "confidence": CONFIDENCE,
    }
    if theirs is not None and duels:
        whole, *groups = duels.items()
        found["against"] = _measured(theirs)
        found["duel"] = {**_duel(whole[1]), "subtasks": {name: _duel(one) for name, one in groups}}
    return found


def _measured(one: Measured) -> dict[str, Any]:
    success = one.success
    found: dict[str, Any] = {
        "versions": list(one.versions),
        "mean": success.mean.value,
        "standard_error": one.standard_error,
        "interval": success.mean.interval,
        "subtasks": {name: _count(count) for name, count in success.subtasks.items()},
    }
    if success.dimensions:
        found["dimensions"] = {name: _count(count) for name, count in success.by_dimension.items()}
        for name, dimensions in success.dimensions.items():
            found["subtasks"][name]["dimensions"] = {key: _count(count) for key, count in dimensions.items()}
    if one.critic:
        found["critic"] = one.critic
    if one.agreement is not None:
        found["critic_agrees_with_world"] = _count(one.agreement)
    if one.synergy is not None:
        found["synergy"] = {"-".join(pair): _count(count) for pair, count in one.synergy.items()}
    if one.chosen is not None:
        found["selection"] = {**one.chosen.selection.as_json(), "choices": dict(one.chosen.choices)}
    if one.understanding is not None:
        found["amu"] = _understanding(one.understanding)
    if one.generation is not None:
        found["amg"] = _generation(one.generation)
    if one.understanding is not None and one.generation is not None:
        found["overall"] = overall(one.understanding.amu.value, one.generation.amg.value)
    return found


def _count(count: Count) -> dict[str, Any]:
    share = count.share
    return {"right": count.right, "asked": count.asked, "rate": share.value, "interval": share.interval}


def _understanding(report: UnderstandingReport) -> dict[str, Any]:
    return {**report.amu.as_json(), "categories": {name: one.as_json() for name, one in report.categories.items()}}


def _generation(report: GenerationReport) -> dict[str, Any]:
    made = report.generation
    return {
        **report.amg.as_json(),
        "most": most(),
        "selection": report.selection.as_json(),
        "following": dict(made.following),
        "synergy": {"-".join(pair): value for pair, value in made.synergy.items()},
        "present": {slot: {"answers": there, "wanted": wanted} for slot, (there, wanted) in report.present.items()},
        "selection_by_kind": dict(report.selection_by_kind),
        "choices": {kind: dict(sets) for kind, sets in report.choices.items()},
    }


def _duel(one: Duel) -> dict[str, Any]:
    return {
        "wins": one.wins,
        "ties": one.ties,
        "losses": one.losses,
        "win_rate": one.win_rate.as_json(),
        "decided": one.decided.as_json(),
        "p_value": one.p_value,
        "gain": one.gain.as_json(),
    }
