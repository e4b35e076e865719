"""Is a service truly ready? One question per kind of service, asked again until the answer is yes."""

import contextlib
import socket
import struct
from dataclasses import dataclass, field
from typing import Protocol

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anyloop.config import Settings
from anyloop.transport import TransportError, open_sync_channel

_TIMEOUT_S = 1.0


class Probe(Protocol):
    def ready(self) -> bool:
        """False while the service is not there or says that it is not ready; never raises."""
        ...


@dataclass(frozen=True)
class GrpcHealth:
    """`grpc.health.v1` for the whole server, with the certificates of `settings` where they name some; None is plain
    text. Triton answers it too, once every model is loaded."""

    target: str
    settings: Settings | None = field(default=None, compare=False, repr=False)

    def ready(self) -> bool:
        try:
            with self._open() as channel:
                reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
        except (grpc.RpcError, TransportError):  # a service with such certificates ends, and says why
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def _open(self) -> grpc.Channel:
        if self.settings is None:
            return grpc.insecure_channel(self.target)
        return open_sync_channel(self.settings, self.target)


@dataclass(frozen=True)
class HttpOk:
    """A GET that answers 2xx."""

    url: str

    def ready(self) -> bool:
        try:
            return httpx.get(self.url, timeout=_TIMEOUT_S, trust_env=False).is_success
        except httpx.HTTPError:
            return False


@dataclass(frozen=True)
class KafkaAnswers:
    """A broker without encryption that answers an ApiVersions request (key 18, version 0 of the Kafka protocol)."""

    host: str
    port: int

    def ready(self) -> bool:
        request = struct.pack(">hhih", 18, 0, 1, -1)  # key, version, correlation id, no client id
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), _TIMEOUT_S) as broker:
            broker.settimeout(_TIMEOUT_S)
            broker.sendall(struct.pack(">i", len(request)) + request)
            return len(broker.recv(4)) == 4
        return False
