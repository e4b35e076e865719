"""`anyloop replay`: train a new lineage of checkpoints from logged feedback, or put dead letters back."""

import re
import time
from typing import Annotated, Any, Literal

import typer

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.output import JsonFlag, console, errors
from anyloop.config import Settings

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
        Literal["dpo", "ppo", "grpo"] | None, typer.Option(help="Default: dpo.", rich_help_panel=_LEARNING)
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
    from anyloop.cli.replay.beginning import prepared
    from anyloop.cli.replay.home import folder_of, private_settings
    from anyloop.cli.replay.learning import learn
    from anyloop.cli.replay.plan import Plan
    from anyloop.cli.replay.report import report, say_counts

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
        plan = prepared(live, private, plan, lineage, asked, gate_suite, screen)
    if plan.state != "done":
        say_counts(plan, screen)
        learn(live, private, plan, screen, begun)
        plan.state = "done"
        plan.save(folder)
    report(live, folder, plan, as_json)


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
