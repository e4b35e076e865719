"""Channels to other services of the loop.

A channel opened for a `service` spreads its calls over all addresses of the target and watches the health of each: a
replica that drains or loses its weights gets no more calls the moment it says so, before it closes its port. What fails
with UNAVAILABLE before its first message is sent again, to another replica where there is one: nothing that the caller
has seen is ever repeated.

No call waits for a service that is away (`wait_for_ready` stays off): it would hold its caller until the deadline,
while the caller could have said "try again" after the second and a half that the attempts take. The first connection
is waited for all the same.
"""

import json
from collections.abc import Sequence
from typing import Any

import grpc

from anyloop.config import Settings
from anyloop.transport.certificates import certificate_files
from anyloop.transport.credentials import channel_credentials, of_client
from anyloop.transport.resolve import is_address
from anyloop.transport.rotating import RotatingChannel

_OPTIONS = (
    # A service that restarts is back in seconds; gRPC's default waits up to two minutes before it looks again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # New replicas are in the name service soon after the old ones are gone; the default asks twice a minute at most.
    ("grpc.dns_min_time_between_resolutions_ms", 2000),
    # A machine that vanished closes nothing: without an answer for 10 seconds its connection counts as broken.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Requests over this size are not kept for another attempt; the largest prompt has 4 MiB.
    ("grpc.per_rpc_retry_buffer_size", 5 * 2**20),
)
ATTEMPTS = 5  # gRPC allows no more
_RETRIES = {
    "maxAttempts": ATTEMPTS,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# Attempts stop after 500 failures in a row, until calls succeed again: a fleet that is down is not asked five-fold.
_THROTTLE = {"maxTokens": 1000, "tokenRatio": 1.0}


def channel_options(
    settings: Settings, target: str, *, service: str = "", server_name: str = ""
) -> list[tuple[str, Any]]:
    """What a channel to `target` is opened with. `service`: the full name of the balanced service, empty for a call to
    one single replica, which is neither balanced nor repeated. `server_name`: what the server's certificate must
    name, where that is not the host in the target."""
    options: list[tuple[str, Any]] = list(_OPTIONS)
    if service:
        options.append(("grpc.service_config", json.dumps(_balanced(service))))
    else:
        options.append(("grpc.enable_retries", 0))
    name = server_name or (settings.tls_server_name if _by_address(target) else "")
    if name and certificate_files(settings) is not None:
        options.append(("grpc.ssl_target_name_override", name))
    return options


def open_channel(
    settings: Settings,
    target: str,
    *,
    service: str = "",
    server_name: str = "",
    options: Sequence[tuple[str, Any]] = (),
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
) -> grpc.aio.Channel:
    """Connects at the first call. With TLS on, calls that begin after a renewal of the certificates use the new ones,
    and those that run end undisturbed. Raises TransportError."""
    chosen = [*channel_options(settings, target, service=service, server_name=server_name), *options]
    between = list(interceptors)
    files = certificate_files(settings)
    if files is None:
        return grpc.aio.insecure_channel(target, options=chosen, interceptors=between)
    return RotatingChannel(
        files,
        lambda certificates: grpc.aio.secure_channel(
            target, of_client(certificates), options=chosen, interceptors=between
        ),
    )


def open_sync_channel(
    settings: Settings,
    target: str,
    *,
    service: str = "",
    server_name: str = "",
    options: Sequence[tuple[str, Any]] = (),
) -> grpc.Channel:
    """For code without an event loop. It keeps the certificates it was opened with: open one per piece of work.
    Raises TransportError."""
    chosen = [*channel_options(settings, target, service=service, server_name=server_name), *options]
    credentials = channel_credentials(settings)
    if credentials is None:
        return grpc.insecure_channel(target, options=chosen)
    return grpc.secure_channel(target, credentials, options=chosen)


def _balanced(service: str) -> dict[str, Any]:
    return {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": service},
        "methodConfig": [{"name": [{"service": service}], "retryPolicy": _RETRIES}],
        "retryThrottling": _THROTTLE,
    }


def _by_address(target: str) -> bool:
    """Whether `target` names a host by its address, which certificates seldom do."""
    if target.startswith(("ipv4:", "ipv6:")):
        return True
    return is_address(target.rsplit("/", 1)[-1].rpartition(":")[0].strip("[]"))
