"""Clients of the cluster: connected, or nothing left behind and an error that says why."""

import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any, TypeVar

from kafka import errors as kafka
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket

from anyloop.log.kafka_access import check_access
from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings

C = TypeVar("C")

# What matters reaches our callers as LogError; kafka-python would report each attempt to reconnect besides. Whoever
# wants that sets the level of this logger before.
_library = logging.getLogger("kafka")
if _library.level == logging.NOTSET:
    _library.setLevel(logging.CRITICAL)


class _ClosingSocket(KafkaNetSocket):
    """kafka-python leaves the socket of a refused connection open until it is collected, one for each attempt."""

    SCHEMES = ("direct",)

    async def sock_connect(self, net: Any, sock: socket.socket, sockaddr: Any, timeout_at: float | None = None) -> Any:
        try:
            return await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise


def connect(make: Callable[..., C], address: KafkaAddress, settings: KafkaSettings, config: dict[str, Any]) -> C:
    """`make(**config)`, a class of kafka-python, which connects at once.

    Raises kafka-python's errors, or LogError where the broker refuses this client. A constructor that fails in
    kafka-python leaves its thread and its sockets open; here they are closed.
    """
    if not check_access(address, settings, config["bootstrap_timeout_ms"] / 1000):
        # A TLS handshake with a broker that is mute would have no time limit in kafka-python.
        raise kafka.KafkaTimeoutError(f"Unable to bootstrap from {list(address.servers)}")
    opened: list[KafkaNetClient] = []

    def network(**options: Any) -> KafkaNetClient:
        client = KafkaNetClient(**options)
        opened.append(client)
        return client

    try:
        return make(bootstrap_servers=list(address.servers), kafka_client=network, proxy_url="direct://here", **config)
    except BaseException:
        for client in opened:
            with contextlib.suppress(Exception):
                client.close()
        raise
