"""`anyloop replay`: train a new lineage of checkpoints from logged feedback, or put dead letters back."""

import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.output import JsonFlag, console, errors, print_json
from anyloop.config import Settings

if TYPE_CHECKING:
    from anyloop.cli.replay.plan import Plan
    from anyloop.log import EventLog

_LINEAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LIVE = ("policy", "critique")
_LEARNING, _LETTERS = "Learn again", "Dead letters"
SUITE = "anyloop.world.suite:gate_suite"


def replay(
    topic: Annotated[
        str, typer.Argument(help="With --dead-letters: responses, feedback, critiques or checkpoints; default: all.")
    ] = "",
    begin: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="TIME|PARTITION@OFFSET",
            help="First feedback to learn from: 2h, 3d, an ISO 8601 time, `beginning`, or offsets of the feedback "
            "topic (repeat it, or 0@120,1@80; a partition left out begins at its beginning).",
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    end: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="TIME|PARTITION@OFFSET",
            help="Where to end, this one not included; default: what the log holds now.",
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    into: Annotated[
        str,
        typer.Option(
            metavar="LINEAGE",
            help="Name of the new lineage: its versions are LINEAGE-000001 and on.",
            rich_help_panel=_LEARNING,
        ),
    ] = "",
    algorithm: Annotated[
        Literal["dpo", "ppo"] | None, typer.Option(help="Default: dpo.", rich_help_panel=_LEARNING)
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            metavar="VERSION",
            help="Weights to begin from; default: the policy that served when the first feedback came.",
            rich_help_panel=_LEARNING,
        ),
    ] = "",
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Spread the feedback over so many rounds; default: 1.", rich_help_panel=_LEARNING),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the trainer.", rich_help_panel=_LEARNING),
    ] = None,
    lookback: Annotated[
        str,
        typer.Option(
            help="How long before the first feedback its responses are looked for (default: 7d).",
            rich_help_panel=_LEARNING,
        ),
    ] = "",
    gate_suite: Annotated[
        str,
        typer.Option(
            help="MODULE:FUNCTION of the evaluation suite.", envvar="ANYLOOP_GATE_SUITE", rich_help_panel=_LEARNING
        ),
    ] = SUITE,
    dead_letters: Annotated[
        bool, typer.Option("--dead-letters", help="Put dead letters back on their topic.", rich_help_panel=_LETTERS)
    ] = False,
    reason: Annotated[
        str, typer.Option(help="Only those whose reason contains this text.", rich_help_panel=_LETTERS)
    ] = "",
    since: Annotated[
        str, typer.Option(help="Only those set aside since: 2h, 3d, or a time.", rich_help_panel=_LETTERS)
    ] = "",
    max_replays: Annotated[
        int, typer.Option(min=1, help="Leave those that came back so often.", rich_help_panel=_LETTERS)
    ] = 3,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.", rich_help_panel=_LETTERS)
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Learn again from a part of the log, into a new lineage of checkpoints; or, with --dead-letters, put dead letters
    back on their topic.

    The live loop is not touched: services of its own on free ports, at low priority, in HOME/replays/LINEAGE. After
    Ctrl-C or a crash, `anyloop replay --into LINEAGE` goes on.
    """
    learning = {"from": begin, "to": end, "algorithm": algorithm, "base": base, "rounds": rounds, "set": assignments}
    learning["lookback"] = lookback
    if dead_letters:
        given = [name for name, value in (learning | {"into": into}).items() if value]
        if given:
            raise CommandError(f"--{given[0]} and --dead-letters exclude each other", ExitCode.USAGE)
        from anyloop.cli.replay.letters import put_back

        put_back(topic, reason=reason, since=since, max_replays=max_replays, dry_run=dry_run, as_json=as_json)
        return
    if topic:
        raise CommandError(
            f"to list what a topic holds, use `anyloop log read {topic}`; to put its dead letters back, "
            f"`anyloop replay --dead-letters {topic}`",
            ExitCode.USAGE,
        )
    if reason or since or dry_run:
        raise CommandError("--reason, --since and --dry-run belong to --dead-letters", ExitCode.USAGE)
    _learn(_named(into), learning, gate_suite, as_json)


def _learn(lineage: str, asked: dict[str, Any], gate_suite: str, as_json: bool) -> None:
    from anyloop.cli.replay.home import only_one
    from anyloop.cli.runfile import log_url
    from anyloop.cli.up import local_settings

    live = local_settings("inprocess")
    live.log_url = log_url(live)
    with only_one(live, lineage):
        _learn_alone(live, lineage, asked, gate_suite, as_json)


def _learn_alone(live: Settings, lineage: str, asked: dict[str, Any], gate_suite: str, as_json: bool) -> None:
    """Plans, prepares, learns and reports; each as far as it is still to be done."""
    from anyloop.cli.replay.home import folder_of, private_settings
    from anyloop.cli.replay.learning import learn
    from anyloop.cli.replay.plan import Plan

    folder = folder_of(live, lineage)
    private = private_settings(live, folder)
    screen = errors if as_json else console
    plan = Plan.load(folder)
    begun = time.time()
    if plan is not None:
        plan.refuse_other(asked, folder)
        if plan.state != "done":
            screen.print(f"Going on with the replay into {lineage}.", highlight=False)
    if plan is None or plan.state == "filling":
        plan = _prepare(live, private, plan, lineage, asked, gate_suite, screen)
    if plan.state != "done":
        _say_counts(plan, screen)
        learn(live, private, plan, screen, begun)
        plan.state = "done"
        plan.save(folder)
    _report(live, folder, plan, as_json)


def _prepare(
    live: Settings, private: Settings, plan: "Plan | None", lineage: str, asked: dict[str, Any], suite: str, screen: Any
) -> "Plan":
    from rich.progress import Progress

    from anyloop.cli.replay.home import prepare
    from anyloop.log import LogError, UnknownTopic, open_log

    with open_log(live.effective_log_url) as source:
        try:
            if plan is None:
                plan = _new_plan(live, source, lineage, asked, suite)
                plan.save(private.home)
            elif plan.log != live.effective_log_url:
                raise CommandError(
                    f"the replay into {lineage} was begun on {plan.log}, the settings now name "
                    f"{live.effective_log_url}: set ANYLOOP_LOG_URL back, or remove {private.home}",
                    ExitCode.REFUSED,
                )
            with Progress(console=screen, transient=True) as progress:
                bar = progress.add_task("Reading the log", total=None)
                prepare(
                    live,
                    private,
                    plan,
                    source,
                    _age(plan.asked["lookback"]),
                    lambda done, total: progress.update(bar, completed=done, total=total),
                )
        except UnknownTopic as error:
            raise CommandError(f"{error}: nothing was ever logged here", ExitCode.NOT_FOUND) from error
        except LogError as error:
            raise CommandError(str(error), ExitCode.UNREACHABLE) from error
        except CommandError as error:
            if error.code == ExitCode.NOT_FOUND:
                shutil.rmtree(private.home, ignore_errors=True)  # another choice may find something
            raise
    return plan


def _new_plan(live: Settings, source: "EventLog", lineage: str, asked: dict[str, Any], suite: str) -> "Plan":
    from anyloop.cli.replay import selection
    from anyloop.cli.replay.home import starting_versions
    from anyloop.cli.replay.learning import check_settings
    from anyloop.cli.replay.plan import Plan
    from anyloop.log import FEEDBACK, RESPONSES
    from anyloop.registry import Registry

    if not asked["from"]:
        raise CommandError(
            "say where to begin: --from 2h, --from 2026-01-31, --from 0@120 (PARTITION@OFFSET), or --from beginning",
            ExitCode.USAGE,
        )
    settings = dict(_assignment(one) for one in asked["set"] or [])
    defaults = {"algorithm": "dpo", "rounds": 1, "lookback": "7d"}
    asked = asked | {name: asked[name] or value for name, value in defaults.items()}
    check_settings(asked["algorithm"], settings)
    _age(asked["lookback"])
    registry = Registry(live.effective_registry_dir)
    if there := registry.versions(lineage):
        raise CommandError(
            f"{there[-1]} is in the registry, but {live.home} has no replay of that name: choose another --into",
            ExitCode.REFUSED,
        )
    ends = source.end_offsets(FEEDBACK)
    end = selection.offsets_at(source, FEEDBACK, selection.point(asked["to"]), ends) if asked["to"] else ends
    zero = dict.fromkeys(ends, 0)
    begin = selection.offsets_at(source, FEEDBACK, selection.point(asked["from"]), zero)
    policy, critic = starting_versions(registry, source, begin, end, asked["base"])
    return Plan(
        lineage=lineage,
        algorithm=asked["algorithm"],
        rounds=asked["rounds"],
        log=live.effective_log_url,
        base=policy.version,
        critique=critic.version,
        gate_suite=suite,
        begin={FEEDBACK: _texts(begin)},
        end={FEEDBACK: _texts(end), RESPONSES: _texts(source.end_offsets(RESPONSES))},
        settings=settings,
        asked=asked,
    )


def _say_counts(plan: "Plan", screen: Any) -> None:
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


def _report(live: Settings, folder: Path, plan: "Plan", as_json: bool) -> None:
    from rich.table import Table

    from anyloop.cli.journal import Journal
    from anyloop.registry import Registry

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


def _named(lineage: str) -> str:
    if not lineage:
        raise CommandError("name the new lineage with --into (or use --dead-letters)", ExitCode.USAGE)
    if not _LINEAGE.fullmatch(lineage) or lineage in _LIVE:
        raise CommandError(
            f"--into {lineage}: use up to 64 letters, digits, dots, dashes and underscores, and neither policy nor "
            "critique, which are the live ones",
            ExitCode.USAGE,
        )
    return lineage


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise CommandError(f"--set {text}: write NAME=VALUE, for example --set dpo_lr=1e-4", ExitCode.USAGE)
    return name, value


def _age(text: str) -> Any:
    from datetime import UTC, datetime

    from anyloop.cli.records import point_in_time

    return datetime.now(UTC) - point_in_time(text)


def _texts(offsets: dict[int, int]) -> dict[str, int]:
    return {str(part): offset for part, offset in offsets.items()}
