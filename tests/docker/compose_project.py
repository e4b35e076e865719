"""The compose project as `docker compose` would run it, read by the specification's own library.

That library is Go: `composecheck` is built once into a cache outside any checkout.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

import yaml

SOURCE = Path(__file__).parent / "composecheck"
DOCKER = Path(__file__).parents[2] / "docker"


class ComposeCheckMissing(Exception):
    """Compose files cannot be checked on this machine, and why."""


class InvalidCompose(Exception):
    """What the library says of the files."""


def load(*files: Path) -> dict[str, Any]:
    """The project of all profiles, with includes merged and variables filled in. Raises InvalidCompose."""
    environment = {"PATH": os.environ.get("PATH", os.defpath)}  # nothing of this machine's settings gets in
    command = [str(_program()), *map(str, files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise InvalidCompose(done.stderr)
    assert not done.stderr, done.stderr  # a warning is a variable that nobody sets
    project: dict[str, Any] = yaml.safe_load(done.stdout)
    return project


def _program() -> Path:
    digest = hashlib.sha256(b"".join((SOURCE / name).read_bytes() for name in ("go.mod", "go.sum", "main.go")))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anyloop"
    program = cache / f"composecheck-{digest.hexdigest()[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "composecheck.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _build(cache, program)
    return program


def _build(cache: Path, program: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise ComposeCheckMissing("compose files are read by the specification's library: install Go 1.25 or later")
    made = cache / f".tmp-{uuid.uuid4().hex}"
    command = [go, "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-o", str(made), "."]
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "", "CGO_ENABLED": "0"}
    done = subprocess.run(
        command, cwd=SOURCE, env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    if done.returncode:
        made.unlink(missing_ok=True)
        raise ComposeCheckMissing(f"Go could not build composecheck:\n{done.stderr[-2000:]}")
    made.rename(program)
