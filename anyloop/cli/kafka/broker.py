"""One broker in KRaft mode as a child process: formatted once, started, killed and started again on the same data."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from anyloop.cli.exits import CommandError
from anyloop.cli.kafka.artifacts import jars, java

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_CLUSTER_ID = "AnyLoopOneMachineBrokr"  # 22 characters of base64: a fixed id, for data of one folder
_CONSOLE = """\
status = WARN
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %p %c %m%n
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = console
"""
_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    # Topics come from `anyloop topics apply`, never from a client's first append.
    "auto.create.topics.enable": "false",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "broker.session.timeout.ms": "2000",  # a killed broker's successor waits for it
    "broker.heartbeat.interval.ms": "500",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "log.cleaner.dedupe.buffer.size": str(4 * 2**20),  # the default takes 128 MiB of heap at the start
    "log.retention.check.interval.ms": "5000",
    "num.network.threads": "2",
    "num.io.threads": "2",
    "num.recovery.threads.per.data.dir": "1",
}


class LocalBroker:
    """`with LocalBroker(folder) as broker: broker.address`. The kernel ends it with the *thread* that started
    it (and so with this process): start it on a thread that lives as long as the broker shall, best the main one.

    `settings` override or add broker settings; `extra_listeners` maps a listener's name to `(protocol, port)`, whose
    settings (keystores, SASL) stand in `settings`. Port 0 takes a free one, and keeps it over a restart.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        heap_mb: int = 256,
        settings: Mapping[str, str] | None = None,
        extra_listeners: Mapping[str, tuple[str, int]] | None = None,
    ) -> None:
        self._folder = Path(folder).absolute()
        self.port = port or free_port()
        self._controller_port = free_port()
        self._heap_mb = heap_mb
        self._settings = dict(settings or {})
        self._extra = dict(extra_listeners or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of the running broker; None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def log_file(self) -> Path:
        return self._folder / "broker.log"

    def start(self) -> Self:
        """Returns when the broker takes connections. Raises CommandError with the end of its log when it does not."""
        if self.pid is not None:
            return self
        self._folder.mkdir(parents=True, exist_ok=True)
        program, classpath = java(), f"{jars()}/*"
        properties = self._folder / "server.properties"
        properties.write_text(self._properties(), encoding="utf-8")
        logging = self._folder / "log4j2.properties"
        logging.write_text(_CONSOLE, encoding="utf-8")
        options = [f"-Dlog4j2.configurationFile={logging}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        base = [program, *options, f"-Xmx{self._heap_mb}m", f"-Xms{min(self._heap_mb, 128)}m", "-cp", classpath]
        with self.log_file.open("ab") as log:
            if not (self._folder / "data" / "meta.properties").exists():
                tool = ["kafka.tools.StorageTool", "format", "--standalone", "-t", _CLUSTER_ID, "-c", str(properties)]
                self._run([*base, *tool], log)
            self._process = subprocess.Popen(
                [*base, "kafka.Kafka", str(properties)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self._folder,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._await_listening()
        return self

    def kill(self) -> None:
        """`kill -9`, as a machine that loses power would. What the broker had not synced is up to its page cache."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """Stops the process without ending it: connections stay open and nobody answers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """A clean shutdown; killed when that takes too long. Idempotent."""
        if self._process is None or self._process.poll() is not None:
            return
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def erase(self) -> None:
        """Stops the broker and deletes its folder."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _properties(self) -> str:
        listeners = {"PLAINTEXT": ("PLAINTEXT", self.port), **self._extra}
        controller = f"127.0.0.1:{self._controller_port}"
        advertised = [f"{name}://127.0.0.1:{port}" for name, (_, port) in listeners.items()]
        protocols = ["CONTROLLER:PLAINTEXT", *(f"{name}:{protocol}" for name, (protocol, _) in listeners.items())]
        settings = {
            **_SETTINGS,
            "listeners": ",".join([*advertised, f"CONTROLLER://{controller}"]),
            "advertised.listeners": ",".join(advertised),
            "listener.security.protocol.map": ",".join(protocols),
            "controller.quorum.bootstrap.servers": controller,
            "log.dirs": str(self._folder / "data"),
            **self._settings,
        }
        return "".join(f"{name}={value}\n" for name, value in settings.items())

    def _run(self, command: list[str], log: object) -> None:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)  # type: ignore[call-overload]
        if done.returncode:
            raise CommandError(f"the broker's storage could not be formatted:\n{self._tail()}")

    def _await_listening(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise CommandError(f"the Kafka broker ended at its start:\n{self._tail()}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        self.kill()
        raise CommandError(f"the Kafka broker does not listen after {_START_SECONDS:.0f} seconds:\n{self._tail()}")

    def _tail(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")[-2000:]


def free_port() -> int:
    """A TCP port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    if os.uname().sysname == "Linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
