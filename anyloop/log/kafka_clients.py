"""Clients of the cluster: connected, or nothing left behind and an error that says why."""

import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

from kafka.net.compat import KafkaNetClient

from anyloop.log.errors import LogError
from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings

C = TypeVar("C")

# What matters reaches our callers as LogError; kafka-python would report each attempt to reconnect besides. Whoever
# wants that sets the level of this logger before.
_library = logging.getLogger("kafka")
if _library.level == logging.NOTSET:
    _library.setLevel(logging.CRITICAL)


def connect(make: Callable[..., C], address: KafkaAddress, settings: KafkaSettings, config: dict[str, Any]) -> C:
    """`make(**config)`, a class of kafka-python, which connects at once.

    Raises kafka-python's errors, or LogError where TLS refuses. A constructor that fails in kafka-python leaves its
    thread and its sockets open; here they are closed.
    """
    check_tls(address, settings)
    opened: list[KafkaNetClient] = []

    def network(**options: Any) -> KafkaNetClient:
        client = KafkaNetClient(**options)
        opened.append(client)
        return client

    try:
        return make(bootstrap_servers=list(address.servers), kafka_client=network, **config)
    except BaseException:
        for client in opened:
            with contextlib.suppress(Exception):
                client.close()
        raise


def check_tls(address: KafkaAddress, settings: KafkaSettings) -> None:
    """One TLS handshake with the first broker that answers, since kafka-python repeats a refused one until its time
    is up and then has forgotten why. Silent when no broker answers; raises LogError, not retriable, on a refusal."""
    if not settings.uses_tls:
        return
    context = settings.ssl_context()
    for server in address.servers:
        host, _, port = server.rpartition(":")
        host = host.strip("[]")
        try:
            with socket.create_connection((host, int(port)), timeout=settings.timeout_s) as plain:
                plain.settimeout(settings.timeout_s)
                with context.wrap_socket(plain, server_hostname=host):
                    return
        except ssl.SSLCertVerificationError as error:
            raise LogError(
                f"kafka {server}: the broker's certificate is not trusted: {error.verify_message}; set "
                "ANYLOOP_KAFKA_SSL_CAFILE to the authority that signed it, and use a host name that it names",
                retriable=False,
            ) from error
        except ssl.SSLError as error:
            raise LogError(
                f"kafka {server}: no TLS handshake ({error.reason or error}); set ANYLOOP_KAFKA_SECURITY_PROTOCOL to "
                "what this port of the broker speaks, and ANYLOOP_KAFKA_SSL_CERTFILE where it asks for a certificate",
                retriable=False,
            ) from error
        except OSError:
            continue
