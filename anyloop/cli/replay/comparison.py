"""Two versions on the same prompts: by the evaluations that the gate keeps, or asked anew on private services."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anyloop.cli.child import Child
from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.replay.home import copied, private_settings
from anyloop.cli.replay.serving import private_services, program
from anyloop.cli.runfile import in_use, running
from anyloop.cli.supervisor import Supervisor, handled
from anyloop.config import Settings
from anyloop.log import open_log
from anyloop.registry import Registry

_PROGRAM = "trainer.replay.compare"
_POLL_S = 0.1


def compare(live: Settings, before: str, after: str, suite: str) -> dict[str, Any]:
    """What the kept evaluations say; `missing` names versions that have none on this suite."""
    done = subprocess.run(
        [sys.executable, "-m", _PROGRAM, before, after, *_gate(live)],
        env={**os.environ, "ANYLOOP_GATE_SUITE": suite},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        raise CommandError(f"the evaluations cannot be compared: {said}")
    return dict(json.loads(done.stdout))


def evaluate(live: Settings, before: str, after: str, suite: str, say: Callable[[str], None]) -> dict[str, Any]:
    """The same after asking for what is missing, on services of its own that end with the call."""
    folder = live.home.absolute() / "replays" / ".comparison"
    if in_use(folder):
        raise CommandError("another comparison is being made in this home: wait until it has ended", ExitCode.REFUSED)
    shutil.rmtree(folder, ignore_errors=True)
    private = private_settings(live, folder)
    topology = private_services(private, ("decoders", "policy"), gate_suite=suite)
    try:
        with (
            running(private, topology),
            handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
            Supervisor(topology.services, log_dir=folder / "logs") as supervisor,
        ):
            _lay_out(live, private, (before, after))
            say("Starting private services")
            supervisor.start()
            say(f"Asking {before} and {after} the same prompts")
            env = {**topology.services[-1].env, "ANYLOOP_GATE_SUITE": suite}
            _ask(live, (before, after), env, folder / "logs" / "compare.log", supervisor.check)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return compare(live, before, after, suite)


def _lay_out(live: Settings, private: Settings, versions: tuple[str, ...]) -> None:
    """A registry with the versions as policies, whatever lineage they are of, and a log that announces the base."""
    source, target = Registry(live.effective_registry_dir), Registry(private.effective_registry_dir)
    base = target.import_base("policy", live.model_dir)
    for version in versions:
        copied(source, version, target, "policy", parent=base.version)
    with open_log(private.effective_log_url) as log:
        log.ensure_topics()


def _ask(live: Settings, versions: tuple[str, str], env: dict[str, str], log: Path, check: Callable[[], None]) -> None:
    """Runs the program that asks; `check` is called while it works. Raises CommandError with what it said last."""
    child = Child(program(_PROGRAM, *versions, *_gate(live), "--ask"), {**os.environ, **env}, log)
    try:
        while (code := child.exit_status()) is None:
            check()
            time.sleep(_POLL_S)
        if code:
            raise CommandError(f"the versions could not be evaluated: {child.log_tail(1) or f'exit code {code}'}")
    finally:
        child.kill()


def _gate(live: Settings) -> tuple[str, str]:
    return "--gate", str(live.home.absolute() / "gate")
