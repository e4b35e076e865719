"""The control plane's two programs, built once by Go into a cache outside any checkout."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import uuid
from pathlib import Path

SOURCE = Path(__file__).parent
PROGRAMS = ("apiserver", "etcd")
_BUILD_SECONDS = 1800  # about four minutes on two cores, with the modules to be brought first


class ControlPlaneMissing(Exception):
    """There is no control plane on this machine, and why."""


def kubernetes_version() -> str:
    """The version of Kubernetes that `go.mod` pins."""
    found = re.search(r"^\s*k8s\.io/kubernetes v(\S+)$", (SOURCE / "go.mod").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def programs() -> Path:
    """The folder with `apiserver` and `etcd`, built first where it is missing. Processes may call it at once.

    The cache is `$XDG_CACHE_HOME/anyloop` (else `~/.cache/anyloop`), one folder for each content of the sources and
    of the pinned modules. Raises ControlPlaneMissing without Go, or when the build fails.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anyloop"
    folder = cache / f"kubernetes-{kubernetes_version()}-{_digest()}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "kubernetes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _build(cache, folder)
    return folder


def _flags() -> list[str]:
    # A server built outside a release calls itself v0.0.0, which Helm and clients that ask for a version refuse.
    version = f"-X k8s.io/component-base/version.gitVersion=v{kubernetes_version()}"
    return ["-trimpath", "-buildvcs=false", "-mod=readonly", f"-ldflags=-s -w {version}"]


def _digest() -> str:
    digest = hashlib.sha256(" ".join(_flags()).encode())
    for path in [SOURCE / "go.mod", SOURCE / "go.sum", *sorted(SOURCE.glob("*/main.go"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _build(cache: Path, folder: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise ControlPlaneMissing(
            f"kube-apiserver {kubernetes_version()} and etcd are built from source: install Go 1.26 or later"
        )
    work = cache / f".tmp-{uuid.uuid4().hex}"
    work.mkdir()
    command = [go, "build", *_flags(), "-o", f"{work}/"]
    # The toolchain that is here, or a clear refusal by Go that names the version that go.mod asks for.
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    try:
        done = subprocess.run(
            [*command, *(f"./{name}" for name in PROGRAMS)],
            cwd=SOURCE,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_BUILD_SECONDS,
            check=False,
        )
        if done.returncode:
            raise ControlPlaneMissing(f"Go could not build kube-apiserver and etcd:\n{done.stderr[-2000:]}")
        work.rename(folder)  # whole, or not at all
    except subprocess.TimeoutExpired as error:
        raise ControlPlaneMissing(f"Go built no kube-apiserver within {_BUILD_SECONDS} seconds; try again") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
