"""Runs a prepared replay: private services, the gate, and the program that learns, until its rounds are done."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from anyloop.cli.board import Board
from anyloop.cli.child import Child
from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.journal import Journal
from anyloop.cli.replay.plan import Plan, plan_file
from anyloop.cli.replay.serving import private_services, program
from anyloop.cli.runfile import running
from anyloop.cli.supervisor import Supervisor, handled
from anyloop.config import Settings

_SERVICES = ("decoders", "policy", "critique", "gate")
_POLL_S = 0.2
_STOP_S = 20.0


def learn(live: Settings, private: Settings, plan: Plan, console: Console, begun: float) -> list[dict[str, Any]]:
    """Returns the journal's records of the rounds. Raises CommandError when a process dies, KeyboardInterrupt on a
    signal; the same command goes on where it stopped. `begun`: Unix seconds at which the command began."""
    logs = private.home / "logs"
    topology = private_services(private, (*_SERVICES, "trainer"), algorithm=plan.algorithm, gate_suite=plan.gate_suite)
    trainer = next(spec for spec in topology.services if spec.name == "trainer")
    services = tuple(spec for spec in topology.services if spec.name != "trainer")
    registry, gate = live.effective_registry_dir.absolute(), live.home.absolute() / "gate"
    argv = program(
        "trainer.replay", "--plan", str(plan_file(private.home)), "--registry", str(registry), "--gate", str(gate)
    )
    board = Board(console)
    with (
        running(private, topology),
        handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
        Supervisor(services, log_dir=logs, on_change=board.show) as supervisor,
    ):
        with board:
            supervisor.start()
        supervisor.on_change = lambda services: None
        with _child(argv, {**os.environ, **trainer.env}, logs / "learning.log") as child:
            _watch(child, supervisor.check, Journal(private.home / "trainer" / "rounds.jsonl"), plan, console, begun)
        with board:
            supervisor.on_change = board.show
            supervisor.stop()
    return Journal(private.home / "trainer" / "rounds.jsonl").rounds()


def check_settings(algorithm: str, settings: dict[str, str]) -> None:
    """Asks the trainer whether it takes the settings. Raises CommandError with its answer."""
    assignments = [f"{name}={value}" for name, value in settings.items()]
    done = subprocess.run(
        [sys.executable, "-m", "trainer.replay.check", algorithm, *assignments], capture_output=True, text=True
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        raise CommandError(f"--set: {said}", ExitCode.USAGE)


def _watch(
    child: Child, check: Callable[[], None], journal: Journal, plan: Plan, console: Console, begun: float
) -> None:
    said = len(journal.rounds())
    with console.status("") as status:
        while (code := child.exit_status()) is None:
            check()
            rounds = journal.rounds()
            for record in rounds[said:]:
                console.print(f"round {record['round']} of {plan.rounds}: {round_words(record)}", highlight=False)
            said = len(rounds)
            after = f", {phase} done" if (phase := journal.newest_phase()) else ""
            waited = time.time() - begun
            status.update(f"round {min(said + 1, plan.rounds)} of {plan.rounds}{after} ({waited:.0f} s)")
            time.sleep(_POLL_S)
    for record in journal.rounds()[said:]:
        console.print(f"round {record['round']} of {plan.rounds}: {round_words(record)}", highlight=False)
    if code == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise CommandError(
            f"the trainer of the replay ended with {code}; the same command goes on from there. The end of "
            f"{child.log}:\n{child.log_tail()}"
        )


def round_words(record: dict[str, Any]) -> str:
    """What became of a round, in a line."""
    metrics = record.get("metrics") or {}
    reason = f" ({metrics['reason']})" if metrics.get("reason") else ""
    seconds = sum((record.get("seconds") or {}).values())
    return f"{metrics.get('feedback', 0)} feedback events, {record.get('outcome')}{reason}, {seconds:.0f} s"


@contextmanager
def _child(argv: tuple[str, ...], env: dict[str, str], log: Path) -> Iterator[Child]:
    """The learning program; it is gone when the block ends, by its own leave where it takes it in time."""
    child = Child(argv, env, log)
    try:
        yield child
    finally:
        child.terminate()
        deadline = time.monotonic() + _STOP_S
        while child.exit_status() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        child.kill()
