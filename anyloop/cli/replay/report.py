"""What a replay tells people: before it learns, what it found in the log; after, what came of it."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from anyloop.cli.exits import CommandError
from anyloop.cli.journal import Journal
from anyloop.cli.output import console, print_json
from anyloop.cli.replay.plan import Plan
from anyloop.config import Settings
from anyloop.registry import Registry


def say_counts(plan: Plan, screen: Console) -> None:
    """What was selected, and what of it cannot be learned from."""
    counts = plan.counts
    screen.print(
        f"{plan.lineage}: {plan.algorithm} from {plan.base} and {plan.critique} on {counts['usable']} of "
        f"{counts['feedback']} feedback events, {counts['responses']} responses, {plan.rounds} round(s).",
        highlight=False,
    )
    lost = counts["distinct"] - counts["usable"]
    if lost:
        screen.print(f"The responses of {lost} were not found: --lookback widens the search.", highlight=False)
    if counts["known_to_base"]:
        screen.print(f"{plan.base} has learned from {counts['known_to_base']} of them before.", highlight=False)
    if counts["unreadable"]:
        screen.print(f"{counts['unreadable']} cannot be read as feedback.", highlight=False)
    if counts.get("media_missing"):
        screen.print(f"{counts['media_missing']} media of refinements are no longer stored.", highlight=False)


def report(live: Settings, folder: Path, plan: Plan, as_json: bool) -> None:
    """The versions that came of it, and what to do with them. Raises CommandError when there are none."""
    registry = Registry(live.effective_registry_dir)
    manifests = [registry.manifest(version) for version in registry.versions(plan.lineage)]
    journal = Journal(folder / "trainer" / "rounds.jsonl")
    rounds = journal.rounds()
    rows = [
        {
            "version": one.version,
            "parent": one.parent,
            "outcome": (one.gate or {}).get("outcome", "undecided"),
            "reason": (one.gate or {}).get("reason", ""),
            "feedback": len(one.metrics.get("feedback_ids", ())),
        }
        for one in manifests
    ]
    best = next((row["version"] for row in reversed(rows) if row["outcome"] == "promoted"), None)
    if as_json:
        print_json(
            {
                "lineage": plan.lineage,
                "algorithm": plan.algorithm,
                "base": plan.base,
                "counts": plan.counts,
                "versions": rows,
                "best": best,
                "rounds": [{"round": one["round"], "outcome": one["outcome"]} for one in rounds],
                "failures": journal.failures(),
            }
        )
    else:
        table = Table("version", "parent", "feedback", "gate", "reason", box=None)
        for row in rows:
            table.add_row(row["version"], row["parent"], str(row["feedback"]), row["outcome"], row["reason"])
        if rows:
            console.print(table)
        learned = sum(row["feedback"] for row in rows)
        if rows and learned < plan.counts["usable"]:
            console.print(
                f"{plan.counts['usable'] - learned} feedback events are in no version: their round made no candidate, "
                "or one voice said more than --set max_per_principal lets it."
            )
        if rows:
            other = f"anyloop checkpoints diff {plan.base} {best or rows[-1]['version']}"
            console.print(f"\nCompare: {other}", highlight=False, soft_wrap=True)
        if best:
            console.print(f"Serve:   anyloop checkpoints promote {best} --lineage policy", highlight=False)
    if not rows:
        said = [str(one["outcome"]) for one in rounds] + journal.failures()[-1:]
        raise CommandError(f"no version came of it: {'; '.join(said) or 'no round was run'}. See {folder / 'logs'}")
