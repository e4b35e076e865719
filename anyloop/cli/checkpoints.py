"""`anyloop checkpoints`: versions of the weights, and which one serves."""

import time
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from anyloop.cli import checkpoint_diff
from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.output import JsonFlag, console, errors, print_json
from anyloop.config import Settings

if TYPE_CHECKING:
    from anyloop.log import EventLog
    from anyloop.registry import Manifest, Registry

app = typer.Typer(no_args_is_help=True, help="Checkpoints: list, show, compare, verify, promote, roll back.")
app.command("diff")(checkpoint_diff.diff)
_LIVE = ("policy", "critique")
Lineage = Annotated[Literal["policy", "critique"], typer.Option(help="Which model.")]
Wait = Annotated[float, typer.Option(help="Seconds to wait until a replica serves it; 0 returns at once.")]
Reason = Annotated[str, typer.Option(help="Stands in the log beside the decision.")]


@app.command("list")
def list_checkpoints(
    lineage: Annotated[str, typer.Option(help="Only policy, critique, or the lineage of a replay.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Every version with its parent, state and the gate's verdict; the live lineages first, then those of replays."""
    from anyloop.registry import CheckpointError, Registry
    from anyloop.registry.announce import PROMOTED
    from anyloop.registry.announcements import in_rollout

    settings = Settings()
    registry = Registry(settings.effective_registry_dir)
    rows = []
    others = [name for name in registry.lineages() if name not in _LIVE]
    with _log(settings) as log:
        announced = _announced(log)
        states = {message.version: message for message in announced}
        serving = {message.lineage: message.version for message in announced if message.state == PROMOTED}
        for name in [lineage] if lineage else [*_LIVE, *others]:
            approved = in_rollout(one for one in announced if one.lineage == name)
            try:
                manifests = [registry.manifest(version) for version in registry.versions(name)]
            except CheckpointError as error:
                raise CommandError(str(error)) from error
            rows += [_row(one, states.get(one.version), serving.get(name), approved) for one in manifests]
    for reason in registry.damaged().values():
        errors.print(f"[red]damaged:[/] {escape(reason)}", highlight=False)
    if as_json:
        print_json(rows)
        return
    table = Table("", "version", "parent", "created (UTC)", "state", "reason", box=None)
    for row in rows:
        created = datetime.fromtimestamp(row["created_unix_ms"] / 1000, UTC)
        mark = "[green]●[/]" if row["serving"] else ""
        table.add_row(mark, row["version"], row["parent"], f"{created:%Y-%m-%d %H:%M:%S}", row["state"], row["reason"])
    console.print(table)


@app.command()
def show(version: str, as_json: JsonFlag = False) -> None:
    """The manifest of a version: files with hashes, parent, consumed offsets, metrics, gate decision; and what was
    announced of it (candidate, approved, promoted, rejected), in order; null while the log is away."""
    import json

    from anyloop.log import LogError

    manifest = _manifest(_registry(), version)
    document = json.loads(manifest.to_json())
    try:
        with _log(Settings()) as log:
            document["announced"] = [_announcement(one) for one in _announced(log) if one.version == version]
    except LogError as error:
        document["announced"] = None
        errors.print(f"[yellow]warning:[/] what was announced of it is unknown: {escape(str(error))}", highlight=False)
    if as_json:
        print_json(document)
    else:
        console.print_json(data=document)


@app.command()
def verify(
    version: Annotated[str, typer.Argument(help="A version; leave out with --all.")] = "",
    every: Annotated[bool, typer.Option("--all", help="All versions.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Hash every file again and compare with the manifest. Exit code 1 when one does not match."""
    from anyloop.registry import CheckpointError

    if bool(version) == every:
        raise CommandError("Give one version, or --all", ExitCode.USAGE)
    registry = _registry()
    versions = [version] if version else [v for lineage in registry.lineages() for v in registry.versions(lineage)]
    results: dict[str, str] = {} if version else registry.damaged()
    for name in versions:
        try:
            registry.verify(name)
            results[name] = "ok"
        except CheckpointError as error:
            results[name] = str(error)
    if as_json:
        print_json(results)
    else:
        for name, result in results.items():
            console.print(f"{name}: {result}", highlight=False)
    if any(result != "ok" for result in results.values()):
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="The version that should serve.")],
    lineage: Annotated[
        Literal["policy"] | None,
        typer.Option(help="Take the version of a replay into the live lineage, as its next number, and promote that."),
    ] = None,
    reason: Reason = "promoted by hand",
    wait: Wait = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Put a version in service, whatever the gate said. Its files are verified first."""
    registry = _registry()
    manifest = _manifest(registry, version)
    if manifest.lineage in _LIVE:
        if lineage and lineage != manifest.lineage:
            raise CommandError(
                f"{version} is a {manifest.lineage} model and cannot serve as {lineage}", ExitCode.REFUSED
            )
    elif not lineage:
        raise CommandError(
            f"{version} is of the lineage {manifest.lineage}, which nothing serves: add --lineage policy",
            ExitCode.USAGE,
        )
    else:
        version = _adopted(registry, version, lineage)
    _promote(version, reason, wait, as_json)


@app.command()
def rollback(
    version: Annotated[str, typer.Argument(help="Default: the version that served before the present one.")] = "",
    lineage: Lineage = "policy",
    reason: Reason = "rolled back by hand",
    wait: Wait = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Go back to an earlier version while requests go on."""
    _promote(version or _served_before(lineage), reason, wait, as_json, action="rollback")


def _adopted(registry: "Registry", version: str, lineage: str) -> str:
    from anyloop.registry import CheckpointError
    from anyloop.registry.copies import adopt

    try:
        name = adopt(registry, version, lineage).version
    except CheckpointError as error:
        raise CommandError(f"{error}. Nothing was changed", ExitCode.REFUSED) from error
    errors.print(f"{version} is in the live lineage as {name}.", highlight=False)
    return name


def _promote(version: str, reason: str, wait: float, as_json: bool, action: str = "promote") -> None:
    from anyloop import audit
    from anyloop.registry import CheckpointError, announce

    settings = Settings()
    with _log(settings) as log:
        try:
            manifest = _registry().verify(version)
        except CheckpointError as error:
            audit.record(
                log, action=action, subject=version, actor=audit.operator(), reason=str(error), outcome="refused"
            )
            raise CommandError(f"{error}. Nothing was changed", ExitCode.REFUSED) from error
        announce(
            log,
            manifest.lineage,
            manifest.version,
            "promoted",
            parent=manifest.parent,
            digest=manifest.weights_digest,
            reason=reason,
            decided_by=audit.operator(),
            action=action,
        )
    seconds = _wait_until_served(settings, manifest, wait) if wait > 0 else None
    if as_json:
        print_json({"version": version, "lineage": manifest.lineage, "served_after_seconds": seconds})
    else:
        served = f"; it serves after {seconds:.1f} s" if seconds is not None else ""
        console.print(f"{version} is promoted{served}.", highlight=False)


def _wait_until_served(settings: Settings, manifest: "Manifest", timeout_s: float) -> float:
    """Seconds until the replica proves by its digest that it serves the version. Raises CommandError."""
    from anyloop.cli.replicas import replica_status

    started = time.monotonic()
    while time.monotonic() - started < timeout_s:
        status = replica_status(settings, manifest.lineage)
        if status is not None and any(
            weights.serving and weights.version == manifest.version and weights.digest == manifest.weights_digest
            for weights in status.weights
        ):
            return time.monotonic() - started
        time.sleep(0.2)
    raise CommandError(
        f"{manifest.version} is promoted in the log, but no replica serves it after {timeout_s:.0f} s: see "
        "`anyloop status` and the log of the service",
        ExitCode.UNREACHABLE,
    )


def _served_before(lineage: str) -> str:
    from anyloop.registry.announce import PROMOTED

    with _log(Settings()) as log:
        promoted = [one.version for one in _announced(log) if one.lineage == lineage and one.state == PROMOTED]
    earlier = [version for version in promoted if version != promoted[-1]]
    if not earlier:
        raise CommandError(f"No earlier {lineage} version has served: name one", ExitCode.NOT_FOUND)
    return earlier[-1]


def _state(event: Any) -> str:
    from anyloop.registry.announce import State

    return State.Name(event.state).removeprefix("STATE_").lower()


def _announcement(event: Any) -> dict[str, Any]:
    return {
        "state": _state(event),
        "reason": event.reason,
        "decided_by": event.decided_by,
        "created_unix_ms": event.created_unix_ms,
    }


def _row(manifest: "Manifest", event: Any, serving: str | None, approved: str | None) -> dict[str, Any]:
    """`approved` is the version that waits for its rollout: an older approval never comes to one."""
    state = _state(event) if event else ""
    if state == "approved" and manifest.version != approved:
        state = "overtaken"
    gate = manifest.gate or {}  # of a replay: nothing is announced of it in the live log
    return {
        "version": manifest.version,
        "lineage": manifest.lineage,
        "parent": manifest.parent,
        "created_unix_ms": manifest.created_unix_ms,
        "state": state or gate.get("outcome", "written"),
        "reason": event.reason if event else gate.get("reason", ""),
        "decided_by": event.decided_by if event else "",
        "serving": manifest.version == serving,
        "weights_digest": manifest.weights_digest,
    }


def _manifest(registry: "Registry", version: str) -> "Manifest":
    from anyloop.registry import CheckpointError

    try:
        return registry.manifest(version)
    except CheckpointError as error:
        raise CommandError(f"{error}; `anyloop checkpoints list` shows all", ExitCode.NOT_FOUND) from error


def _registry() -> "Registry":
    from anyloop.registry import Registry

    return Registry(Settings().effective_registry_dir)


def _log(settings: Settings) -> AbstractContextManager["EventLog"]:
    """To look, and to announce: that needs topics, which a log that is not there has not got either."""
    from anyloop.cli.looking import opened_to_look
    from anyloop.cli.runfile import log_url

    return opened_to_look(log_url(settings))


def _announced(log: "EventLog") -> list[Any]:
    """Every announcement, in order; none where the topics are still to be made."""
    from anyloop.log import UnknownTopic
    from anyloop.registry import checkpoint_events

    try:
        return [message for _, message in checkpoint_events(log)]
    except UnknownTopic:
        return []
