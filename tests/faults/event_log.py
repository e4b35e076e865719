"""The log under test: SQLite in the home folder, or a broker of our own behind a network of our own."""

import uuid
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from anyloop.cli.kafka.broker import LocalBroker, free_port
from tests.faults.proxy import TcpProxy


class LogUnderTest(Protocol):
    """`broker` and `link` are what faults take hold of; None where there is no such thing."""

    name: str
    broker: LocalBroker | None
    link: TcpProxy | None

    def urls(self, home: Path) -> tuple[str, str]:
        """An empty log for one home: its URL as the services see it, and as the audit sees it, past the network."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


class SqliteLog:
    """No server, no network: only faults of processes and disks apply."""

    name = "sqlite"
    broker = None
    link = None

    def urls(self, home: Path) -> tuple[str, str]:
        url = f"sqlite:///{home / 'log.db'}"
        return url, url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass


class KafkaLog:
    """One broker with two doors: the services' leads through the proxy, also for what the broker advertises there."""

    name = "kafka"

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        direct, proxied = free_port(), free_port()
        self.link: TcpProxy | None = TcpProxy(proxied)
        self._folder, self._direct, self._proxied = folder, direct, proxied
        self.broker: LocalBroker | None = None

    def __enter__(self) -> Self:
        assert self.link is not None
        self._stack.enter_context(self.link)
        advertised = f"PLAINTEXT://127.0.0.1:{self._direct},PROXIED://127.0.0.1:{self.link.port}"
        self.broker = LocalBroker(
            self._folder,
            port=self._direct,
            extra_listeners={"PROXIED": ("PLAINTEXT", self._proxied)},
            settings={"advertised.listeners": advertised},
        )
        self._stack.callback(self.broker.erase)
        self.broker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def urls(self, home: Path) -> tuple[str, str]:
        assert self.link is not None
        prefix = f"{home.name}-{uuid.uuid4().hex[:8]}."
        return f"kafka://127.0.0.1:{self.link.port}/{prefix}", f"kafka://127.0.0.1:{self._direct}/{prefix}"
