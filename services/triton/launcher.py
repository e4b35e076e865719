"""Starts and stops Triton on a model repository: the binary of the `nvidia-pytriton` wheel or of NVIDIA's image.

In the image the server lies in /opt/tritonserver with its backends in place, made for the image's own Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.hosts.interface import MODELS
from services.hosts.placement import triton_models
from services.triton.repository import build_repository

_ROOT = Path(__file__).resolve().parents[2]
_IMAGE_SERVER = Path("/opt/tritonserver")
_LOG_TAIL = 4000  # bytes of the server's log that an error shows


class TritonError(RuntimeError):
    """Triton cannot be started, or has stopped; the message holds the end of its log."""


@dataclass(frozen=True)
class TritonPorts:
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


def server_directory() -> Path:
    """The `tritonserver` folder: inside the wheel, else of NVIDIA's image. Raises TritonError when there is neither."""
    spec = importlib.util.find_spec("pytriton")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "tritonserver"
    if (_IMAGE_SERVER / "bin" / "tritonserver").exists():
        return _IMAGE_SERVER
    raise TritonError(
        "the Triton binary is not installed: `pip install 'anyloop[triton]'`, or set ANYLOOP_HOST=inprocess"
    )


def backend_directory(directory: Path) -> Path:
    """Where the Python backend lies as Triton looks for it; the wheel's is laid out in `directory` first."""
    server = server_directory()
    stubs = server / "python_backend_stubs"
    if not stubs.exists():
        return server / "backends"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = stubs / version / "triton_python_backend_stub"
    if not stub.exists():
        known = ", ".join(sorted(path.name for path in stubs.iterdir()))
        raise TritonError(f"the Triton wheel has no stub for Python {version}, only for {known}")
    backend = directory / "python"
    backend.mkdir(parents=True, exist_ok=True)
    for source in [*(p for p in (server / "backends" / "python").iterdir() if p.is_file()), stub]:
        target = backend / source.name
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copy2(source, target)
    return directory


def server_environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of the server and its model processes; `settings` are added to the caller's own."""
    site = sysconfig.get_paths()["purelib"]
    environment = {**os.environ, **(settings or {})}
    libraries = [sysconfig.get_config_var("LIBDIR"), str(Path(site) / "nvidia_pytriton.libs")]
    # Without LIBDIR the stub picks the system's libpython of another patch version and breaks in odd ways.
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [*libraries, environment.get("LD_LIBRARY_PATH")]))
    # The repository first: its packages may not be installed.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), site, environment.get("PYTHONPATH")]))
    # The stub takes the first python3 of PATH for its own, and finds the virtual environment by it.
    environment["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), environment.get("PATH", os.defpath)])
    environment.setdefault("OMP_NUM_THREADS", "1")
    return environment


def server_command(
    repository: Path,
    backends: Path,
    ports: TritonPorts,
    address: str,
    models: Sequence[str],
    metrics_address: str | None = None,
) -> list[str]:
    command = [
        str(server_directory() / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",  # or every model.py is loaded twice
        f"--http-address={address}",
        f"--grpc-address={address}",
        f"--metrics-address={metrics_address or address}",
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
        "--exit-timeout-secs=10",
    ]
    return command + [f"--load-model={name}" for name in triton_models(models)]


class TritonServer:
    """One server process. `start`, wait until `ready`, `stop`; as a context manager it does all three."""

    def __init__(
        self,
        directory: Path,
        models: Sequence[str] = MODELS,
        ports: TritonPorts = TritonPorts(),
        address: str = "127.0.0.1",
        settings: Mapping[str, str] | None = None,
        ends_with_caller: bool = False,
        metrics_address: str | None = None,
        log_to_stdout: bool = False,
    ) -> None:
        """`directory` is the server's own: repository, backend folder and log go there. `metrics_address` (`address`)
        may be wider: metrics are read from elsewhere also where nobody else may ask the models.

        `ends_with_caller` (Linux) ends the server when the thread that calls `start` is gone, killed or not.
        `log_to_stdout`: the server writes where this process does, and no file grows: for containers.
        """
        self._directory = directory
        self._models = tuple(models)
        self._ports = ports
        self._address = address
        self._metrics_address = metrics_address
        self._settings = dict(settings or {})
        self._before_exec = _ask_for_parent_death_signal() if ends_with_caller else None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_to_stdout = log_to_stdout
        self.log_path = directory / "triton.log"

    @property
    def grpc_url(self) -> str:
        return f"{self._address}:{self._ports.grpc}"

    def start(self) -> None:
        repository = build_repository(self._directory / "models", self._models)
        backends = backend_directory(self._directory / "backends")
        command = server_command(repository, backends, self._ports, self._address, self._models, self._metrics_address)
        with contextlib.nullcontext() if self._log_to_stdout else self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=server_environment(self._settings),
                stdin=subprocess.DEVNULL,
                stdout=log,  # None: this process's own
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the launcher, which stops the server in order
                preexec_fn=self._before_exec,
            )

    def ready(self) -> bool:
        """True when the server and all its models are ready. Raises TritonError when it has died."""
        self._raise_if_dead()
        paths = ["v2/health/ready", *(f"v2/models/{name}/ready" for name in triton_models(self._models))]
        return all(self._answers(path) for path in paths)

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Raises TritonError when the server dies or takes longer than `timeout` seconds."""
        until = time.monotonic() + timeout
        while not self.ready():
            if time.monotonic() > until:
                raise TritonError(f"Triton was not ready within {timeout:.0f} s. {self._last_words()}")
            time.sleep(0.1)

    def wait(self, timeout: float | None = None) -> int:
        """The server's exit status. Raises subprocess.TimeoutExpired."""
        assert self._process is not None
        return self._process.wait(timeout)

    def stop(self, timeout: float = 20.0) -> None:
        """Asks the server to end its requests and exit; kills it and its model processes when it does not."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # stubs that outlived their server, too
            process.wait()

    def log_tail(self) -> str:
        """Empty with `log_to_stdout`."""
        if self._log_to_stdout or not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - _LOG_TAIL))
            return log.read(_LOG_TAIL).decode(errors="replace")

    def __enter__(self) -> TritonServer:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _raise_if_dead(self) -> None:
        if self._process is None:
            raise TritonError("Triton has not been started")
        status = self._process.poll()
        if status is not None:
            raise TritonError(f"Triton exited with status {status}. {self._last_words()}")

    def _last_words(self) -> str:
        if self._log_to_stdout:
            return "Its log stands above"
        return f"The end of its log:\n{self.log_tail()}"

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._address}:{self._ports.http}/{path}", timeout=2.0) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _ask_for_parent_death_signal() -> Callable[[], None] | None:
    """What a child runs before it becomes the server, so that it gets SIGTERM when its parent thread ends."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: a forked child must not load libraries
    set_death_signal, terminate = 1, int(signal.SIGTERM)

    def ask() -> None:
        prctl(set_death_signal, terminate)

    return ask
