"""`demo-report.json`: every figure of the demo, and nothing that is not one."""

import math
from typing import Any

from anyloop.cli.demo.evaluation import Evaluation
from anyloop.cli.demo.results import Results, Round, SideBySide
from anyloop.world import SUBTASKS


def figures(results: Results) -> dict[str, Any]:
    """JSON-ready; rates are 0-1, times seconds, memory bytes. A figure that could not be measured is null."""
    before, after = results.before, results.after
    report = {
        "summary": {
            "mean_before": before.mean,
            "mean_after": after.mean,
            "points_gained": (after.mean - before.mean) * 100,
            "subtasks_improved": results.improved,
            "feedback_events": sum(r.feedback_events for r in results.rounds),
            "feedback_events_used": results.feedback_used,
            "promoted": [version for r in results.rounds if r.swap for version in [r.swap.version]],
            "requests_served": results.traffic.served,
            "requests_failed": results.traffic.failed,
            "requests_served_in_swaps": sum(r.swap.requests.served for r in results.rounds if r.swap),
            "requests_failed_in_swaps": results.failed_in_swaps,
            "longest_swap_stall_seconds": max((r.swap.stall_seconds for r in results.rounds if r.swap), default=None),
            "peak_memory_bytes": results.peak_memory_bytes,
            "seconds": dict(results.seconds),
        },
        "success": [_evaluation(evaluation) for evaluation in results.evaluations],
        "rounds": [_round(r) for r in results.rounds],
        "criticised_prompts_asked_again": _reasked(results.reasked),
        "plan": vars(results.plan),
        "environment": dict(results.environment),
    }
    cleaned = _without_nan(report)
    assert isinstance(cleaned, dict)
    return cleaned


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "versions": list(evaluation.versions),
        "mean": evaluation.mean,
        "standard_error": evaluation.standard_error,
        "subtasks": {
            name: {"right": score.right, "asked": score.asked, "rate": score.rate}
            for name, score in evaluation.scores.items()
        },
    }


def _round(round_: Round) -> dict[str, Any]:
    swap = round_.swap
    return {
        "round": round_.number,
        "prompts": round_.asked,
        "right_as_asked": round_.right,
        "feedback_events": round_.feedback_events,
        "feedback_events_used": round_.feedback_used,
        "candidate": round_.candidate,
        "decision": round_.state,
        "reason": round_.reason,
        "seconds": dict(round_.seconds),
        "swap": {
            "version": swap.version,
            "seconds_to_first_answer": swap.ended - swap.begun,
            "stall_seconds": swap.stall_seconds,
            "requests_served": swap.requests.served,
            "requests_failed": swap.requests.failed,
        }
        if swap
        else None,
        "trainer": dict(round_.trainer),
        "gate": dict(round_.gate),
    }


def _reasked(pairs: tuple[SideBySide, ...]) -> dict[str, Any]:
    """All of `pairs` were wrong at first, so the share now right is what their critiques repaired."""
    return {
        subtask: {
            "asked": len(of_subtask),
            "right_now": sum(pair.after.judgement.ok for pair in of_subtask),
        }
        for subtask in SUBTASKS
        if (of_subtask := [pair for pair in pairs if pair.before.task.subtask == subtask])
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
