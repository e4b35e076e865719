"""A learner and a gate as processes of their own, which a fault point may kill.

They come from a server that has imported everything, so that one is there in some hundredths of a second.
"""

import multiprocessing
import os
import threading
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from anyloop.config import Settings
from anyloop.log import EventLog, open_log
from anyloop.log.sqlite_log import SqliteLog
from anyloop.media.store import MediaStore
from anyloop.registry import Registry
from tests.trainer.loop import TextSuite
from trainer import __main__ as program
from trainer.fault_points import arm
from trainer.gate.config import GateSettings
from trainer.gate.service import Gate

SQLITE_SESSION_S = 1.0  # a killed member's partitions are free after this

_context: ForkServerContext | None = None


def context() -> ForkServerContext:
    """The server is started once per test process."""
    global _context
    if _context is None:
        _context = multiprocessing.get_context("forkserver")
        _context.set_forkserver_preload(["tests.trainer.processes"])
    return _context


def start_learner(environment: Mapping[str, str], fault: str = "") -> ForkServerProcess:
    """`python -m trainer --once`, again and again until there is nothing to learn: exit code 0."""
    return _start(_learn, environment, fault)


def start_gate(environment: Mapping[str, str], fault: str = "") -> ForkServerProcess:
    """A gate that decides until it is killed."""
    return _start(_decide, environment, fault)


def _start(target: object, environment: Mapping[str, str], fault: str) -> ForkServerProcess:
    process = context().Process(target=target, args=(dict(environment), fault), daemon=True)  # type: ignore[arg-type]
    process.start()
    return process


def _open_log(url: str) -> EventLog:
    if url.startswith("sqlite://"):
        return SqliteLog(Path(url.removeprefix("sqlite://")), session_timeout=SQLITE_SESSION_S)
    return open_log(url)


def _learn(environment: dict[str, str], fault: str) -> None:
    os.environ.update(environment)
    program.open_log = _open_log  # type: ignore[attr-defined]
    arm(fault)
    while (code := program.main(["--once"])) == 0:
        pass
    raise SystemExit(0 if code == program.NOTHING_TO_LEARN else code)


def _decide(environment: dict[str, str], fault: str) -> None:
    os.environ.update(environment)
    arm(fault)
    settings = Settings()
    log = _open_log(settings.effective_log_url)
    registry, media = Registry(settings.effective_registry_dir), MediaStore(settings.effective_media_url)
    gate = GateSettings(suite="test", resamples=100)
    Gate(settings, gate, log, registry, media, TextSuite()).run(threading.Event())
