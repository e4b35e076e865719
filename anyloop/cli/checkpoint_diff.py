"""`anyloop checkpoints diff`: what two versions come from, what they learned from, and which answers better."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.output import JsonFlag, console, errors, print_json
from anyloop.config import Settings

if TYPE_CHECKING:
    from anyloop.registry import Manifest, Registry


def diff(
    before: Annotated[str, typer.Argument(help="A version.")],
    after: Annotated[str, typer.Argument(help="The version to compare with it.")],
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Ask both the same prompts, on private services, where a report is missing."),
    ] = False,
    gate_suite: Annotated[
        str, typer.Option(help="MODULE:FUNCTION of the evaluation suite.", envvar="ANYLOOP_GATE_SUITE")
    ] = "anyloop.world.suite:gate_suite",
    as_json: JsonFlag = False,
) -> None:
    """Compare two versions: descent, settings, the feedback they learned from, and their answers to the same prompts.

    The gain is paired: the same prompts with the same seeds, prompts drawn again within each subtask.
    """
    from anyloop.registry import CheckpointError, Registry

    live = Settings()
    registry = Registry(live.effective_registry_dir)
    try:
        pair = registry.manifest(before), registry.manifest(after)
        document = _descent(registry, *pair)
    except CheckpointError as error:
        raise CommandError(f"{error}; `anyloop checkpoints list` shows all", ExitCode.NOT_FOUND) from error
    document["evaluation"] = _evaluation(live, pair, evaluate, gate_suite)
    if as_json:
        print_json(document)
    else:
        _print(document)


def _descent(registry: "Registry", before: "Manifest", after: "Manifest") -> dict[str, Any]:
    """Everything that the manifests tell."""
    from anyloop.registry.copies import ancestry

    lines = [[one.version for one in ancestry(registry, manifest.version)] for manifest in (before, after)]
    learned = [
        {name for version in line for name in registry.manifest(version).metrics.get("feedback_ids", ())}
        for line in lines
    ]
    shared = next((version for version in lines[0] if version in lines[1]), None)
    settings = [_settings(manifest) for manifest in (before, after)]
    names = sorted(name for name in settings[0].keys() & settings[1] if settings[0][name] != settings[1][name])
    return {
        "versions": [_facts(manifest, line) for manifest, line in zip((before, after), lines, strict=True)],
        "common_ancestor": shared,
        "same_weights": before.weights_digest == after.weights_digest,
        "settings": {name: [one[name] for one in settings] for name in names},
        "without_settings": [
            one.version for one, known in zip((before, after), settings, strict=True) if one.parent and len(known) < 2
        ],
        "feedback": {
            "shared": sorted(learned[0] & learned[1]),
            "only_before": sorted(learned[0] - learned[1]),
            "only_after": sorted(learned[1] - learned[0]),
        },
    }


def _facts(manifest: "Manifest", line: list[str]) -> dict[str, Any]:
    gate = manifest.gate or {}
    return {
        "version": manifest.version,
        "lineage": manifest.lineage,
        "parent": manifest.parent,
        "base": manifest.base,
        "line": line,
        "created_unix_ms": manifest.created_unix_ms,
        "gate": {name: gate.get(name) for name in ("outcome", "reason", "suite", "serving")} if gate else None,
        "replay": manifest.metrics.get("replay"),
        "adopted": manifest.metrics.get("adopted"),
    }


def _settings(manifest: "Manifest") -> dict[str, Any]:
    """What the version says about how it was trained; a base says nothing, some say no more than the algorithm."""
    algorithm = {name: manifest.metrics[name] for name in ("algorithm",) if name in manifest.metrics}
    return algorithm | (manifest.metrics.get("settings") or {})


def _evaluation(live: Settings, pair: tuple["Manifest", "Manifest"], evaluate: bool, suite: str) -> dict[str, Any]:
    """`note` says why there is no gain, and what to do about it."""
    from anyloop.cli.replay import comparison

    before, after = (manifest.version for manifest in pair)
    if any(manifest.lineage == "critique" for manifest in pair):
        return {
            "note": "critique models answer no prompts: they are measured by their held-out loss (checkpoints show)"
        }
    found = comparison.compare(live, before, after, suite)
    if found["missing"] and evaluate:
        with errors.status("") as status:
            found = comparison.evaluate(live, before, after, suite, status.update)
    if found["missing"]:
        found["note"] = f"no evaluation of {', '.join(found['missing'])} on {suite}: ask both now with --evaluate"
    return found


def _print(document: dict[str, Any]) -> None:
    from rich.table import Table

    first, second = document["versions"]
    table = Table("", first["version"], second["version"], box=None, padding=(0, 2, 0, 0))
    for name in ("lineage", "parent", "base"):
        table.add_row(name, first[name], second[name])
    gates = [one["gate"] or {} for one in (first, second)]
    table.add_row("gate", *(str(gate.get("outcome") or "–") for gate in gates))
    for name, values in document["settings"].items():
        table.add_row(name, *map(str, values))
    console.print(table)
    if document["without_settings"]:
        names = ", ".join(document["without_settings"])
        console.print(f"\nNot recorded: the settings that {names} was trained with.", highlight=False)
    feedback = {name: len(ids) for name, ids in document["feedback"].items()}
    common = document["common_ancestor"]
    weights = "The same weights" if document["same_weights"] else "Different weights"
    descent = f"both come from {common}" if common else "no common ancestor in the registry"
    console.print(f"\n{weights}; {descent}.", highlight=False)
    console.print(
        f"Feedback that they and their ancestors learned from: {feedback['shared']} shared, "
        f"{feedback['only_before']} only {first['version']}, {feedback['only_after']} only {second['version']}.\n",
        highlight=False,
    )
    _print_gain(document["evaluation"], first["version"], second["version"])


def _print_gain(found: dict[str, Any], before: str, after: str) -> None:
    from rich.table import Table

    if "gain" not in found:
        console.print(found["note"], highlight=False)
        return
    level = f"{found['confidence']:.0%}"
    table = Table("subtask", before, after, "gain", f"{level} interval", box=None, padding=(0, 2, 0, 0))
    for name, one in found["subtasks"].items():
        table.add_row(name, f"{one['before']:.0%}", f"{one['after']:.0%}", *_interval(one["gain"]))
    means = [found["evaluations"][version]["mean"] for version in (before, after)]
    table.add_row("[bold]mean[/]", *(f"[bold]{mean:.1%}[/]" for mean in means), *_interval(found["gain"]))
    console.print(table)
    gain = found["gain"]
    sure = after if gain["low"] > 0 else before if gain["high"] < 0 else ""
    verdict = f"{sure} is better" if sure else "no difference that these prompts can show"
    console.print(f"\n{found['prompts']} prompts of {found['suite']}: {verdict}.", highlight=False, soft_wrap=True)


def _interval(gain: dict[str, float]) -> tuple[str, str]:
    return f"{gain['mean']:+.1%}", f"[{gain['low']:+.1%}, {gain['high']:+.1%}]".replace("[", r"\[")
