"""`anyloop demo`: start everything, run the story, write the report, stop everything."""

import json
import os
import platform
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.log_choice import LogKind, bring_broker, choose_log, separate_log
from anyloop.cli.output import console, errors, print_json
from anyloop.cli.up import Algorithm, Host, PortOffset, local_settings, prepare_home, preparing

if TYPE_CHECKING:
    from anyloop.cli.demo.results import DemoPlan, Results
    from anyloop.cli.topology import Topology
    from anyloop.config import Settings


def demo(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of feedback and learning.")] = 3,
    prompts: Annotated[int, typer.Option(min=8, help="Prompts per round, each gets one critique.")] = 320,
    eval_prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts per subtask, for each version.")] = 30,
    seed: Annotated[int, typer.Option(help="Prompts, sampling and annotator.")] = 0,
    traffic: Annotated[float, typer.Option(min=0, help="Requests per second of other users, all the time.")] = 2.0,
    algorithm: Algorithm = "dpo",
    host: Host = None,
    log: LogKind = None,
    port_offset: PortOffset = 0,
    out: Annotated[
        Path, typer.Option(help="Folder of demo-report.json, demo-report.html and demo-home (logs).")
    ] = Path("demo-out"),
    keep_home: Annotated[
        bool,
        typer.Option(
            "--keep-home", help="Go on with the home folder (--home) and what it has learned, not with a fresh one."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print demo-report.json on stdout at the end.")] = False,
) -> None:
    """The whole loop: serve, ask, criticise, learn, gate, swap under load, and ask again.

    Everything goes through REST as clients do it. Ends with a table, demo-report.json and demo-report.html. Exit code 1
    when a request failed during a swap.
    """
    from anyloop.cli.demo.results import DemoPlan

    plan = DemoPlan(rounds=rounds, prompts=prompts, eval_prompts=eval_prompts, seed=seed, traffic=traffic)
    out.mkdir(parents=True, exist_ok=True)
    screen = errors if as_json else console
    settings = local_settings(host)
    if not keep_home:
        settings.home = _fresh_home(out.absolute() / "demo-home")
    broker = choose_log(settings, log, port_offset)
    if broker:
        bring_broker()
    elif not keep_home:
        separate_log(settings)
    results = _run(plan, settings, algorithm, port_offset, screen, broker=broker)
    document = _write(results, out)
    if as_json:
        print_json(document)
    _summary(results, out, screen)
    if results.failed_in_swaps:
        raise CommandError(f"{results.failed_in_swaps} requests failed during swaps; see {out / 'demo-report.json'}")


def _run(
    plan: "DemoPlan", settings: "Settings", algorithm: str, port_offset: int, screen_console: Any, *, broker: bool
) -> "Results":
    from anyloop.cli.board import Board
    from anyloop.cli.memory import PeakMemory
    from anyloop.cli.runfile import running
    from anyloop.cli.supervisor import Supervisor, handled
    from anyloop.cli.topology import one_machine

    begun = time.monotonic()
    suite = "anyloop.world.suite:gate_suite"
    topology = one_machine(settings, port_offset=port_offset, algorithm=algorithm, gate_suite=suite, broker=broker)
    with (
        PeakMemory() as memory,
        running(settings, topology),
        handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
        Supervisor(topology.services, log_dir=settings.home / "logs", on_ready=preparing(settings)) as supervisor,
    ):
        if not broker:
            prepare_home(settings)
        board = Board(screen_console)
        supervisor.on_change = board.show
        with board:
            supervisor.start()
        started = time.monotonic()
        told = _tell(plan, settings, topology, supervisor.check, screen_console)
        ended = time.monotonic()
        with board:
            supervisor.stop()
    stopped = time.monotonic()
    from anyloop.cli.demo.results import Results

    return Results(
        plan=plan,
        **told,
        seconds={"start": started - begun, "demo": ended - started, "stop": stopped - ended, "total": stopped - begun},
        peak_memory_bytes=memory.peak_bytes,
        environment={
            "host": settings.host,
            "algorithm": algorithm,
            "log": settings.effective_log_url.partition(":")[0],
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "model": settings.model_dir.name,
        },
    )


def _tell(
    plan: "DemoPlan", settings: "Settings", topology: "Topology", alive: Callable[[], None], screen_console: Any
) -> dict[str, Any]:
    """The story under traffic; what it found, by the names of Results."""
    from anyloop.cli.demo.checkpoint_topic import CheckpointTopic
    from anyloop.cli.demo.screen import Screen
    from anyloop.cli.demo.story import Story
    from anyloop.cli.demo.traffic import Traffic
    from anyloop.cli.journal import Journal
    from anyloop.cli.rest import GatewayClient
    from anyloop.log import open_log

    with (
        GatewayClient(topology.gateway_url) as client,
        open_log(settings.effective_log_url) as log,
        Screen(screen_console) as screen,
        Traffic(client, plan.traffic, plan.seed) as traffic,
    ):
        story = Story(
            plan,
            client,
            CheckpointTopic(log),
            traffic,
            screen,
            journal=Journal(settings.home / "trainer" / "rounds.jsonl"),
            policy_metrics_url=topology.urls["metrics (policy)"],
            alive=alive,
        )
        before = story.measure("before")
        rounds = tuple(story.round(number) for number in range(1, plan.rounds + 1))
        reasked = tuple(story.ask_again())
        traffic.stop()
        return {"before": before, "rounds": rounds, "reasked": reasked, "traffic": traffic.count()}


def _write(results: "Results", out: Path) -> dict[str, Any]:
    from anyloop.cli.demo.figures import figures
    from anyloop.cli.demo.page import page

    document = figures(results)
    (out / "demo-report.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / "demo-report.html").write_text(page(results))
    return document


def _fresh_home(home: Path) -> Path:
    """An empty home: a run that began with what another learned would measure nothing. Raises CommandError."""
    from anyloop.cli.runfile import in_use

    if home.exists() and not (home / "up.lock").exists() and any(home.iterdir()):
        raise CommandError(f"{home} is not from a demo: remove it, or choose another --out", ExitCode.USAGE)
    if in_use(home):
        raise CommandError(f"Another demo runs on {home}: stop it, or choose another --out and --port-offset")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    return home


def _summary(results: "Results", out: Path, screen_console: Any) -> None:
    from rich.table import Table

    from anyloop.cli.demo.screen import success_table

    screen_console.print()
    screen_console.print(success_table(results.evaluations))
    table = Table(title="\nRounds", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("round", "critiques", "decision", "learn", "gate", "swap", "stall", "served", "failed"):
        table.add_column(name, justify="left" if name == "decision" else "right", no_wrap=True)
    for r in results.rounds:
        swap = r.swap
        table.add_row(
            str(r.number),
            str(r.feedback_events),
            f"{r.state} {r.candidate}",
            *(f"{r.seconds[phase]:.1f} s" if phase in r.seconds else "–" for phase in ("learn", "gate", "swap")),
            swap.stall_text if swap else "–",
            str(swap.requests.served) if swap else "–",
            str(swap.requests.failed) if swap else "–",
        )
    screen_console.print(table)
    points = (results.after.mean - results.before.mean) * 100
    screen_console.print(
        f"\n[bold]{points:+.1f} points[/], {len(results.improved)} of 8 subtasks improved; traffic "
        f"{results.traffic.served} served, {results.traffic.failed} failed; "
        f"{results.seconds['total'] / 60:.1f} minutes, {results.peak_memory_bytes / 2**30:.2f} GiB at the peak\n"
        f"Report: {out / 'demo-report.html'}",
        highlight=False,
    )
