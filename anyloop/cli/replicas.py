"""What the replicas say of themselves over the control service."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from anyloop.cli.exits import CommandError
from anyloop.cli.runfile import setting
from anyloop.config import Settings
from anyloop.transport import Address, TransportError, addresses, open_sync_channel
from protos.anyloop.v1 import control_pb2, control_pb2_grpc

_AT_ONCE = 32


def replica_status(settings: Settings, lineage: str, timeout_s: float = 2.0) -> control_pb2.ReplicaStatus | None:
    """The replica of a lineage ("policy" or "critique"), the first that answers where there are several; None when none
    does. Raises CommandError when the certificates of the settings cannot be used."""
    return next((status for _, status in fleet(settings, lineage, timeout_s) if status is not None), None)


def fleet(
    settings: Settings, lineage: str, timeout_s: float = 2.0
) -> list[tuple[str, control_pb2.ReplicaStatus | None]]:
    """Every replica behind the control target of a lineage with what it says, None where it does not answer. Raises
    CommandError when the certificates of the settings cannot be used."""
    found = addresses(setting(settings, f"{lineage}_control_target"))
    try:
        with ThreadPoolExecutor(_AT_ONCE) as asking:
            replies = asking.map(lambda address: _ask(settings, address, timeout_s), found)
            return [(address.target, reply) for address, reply in zip(found, replies, strict=True)]
    except TransportError as error:
        raise CommandError(str(error)) from error


def replica_row(address: str, status: control_pb2.ReplicaStatus | None) -> dict[str, Any]:
    """One replica of the report: the digest is that of the weights that serve, as the replica computed it."""
    if status is None:
        return {"address": address, "reachable": False}
    serving = next((weights for weights in status.weights if weights.serving), None)
    return {
        "address": address,
        "reachable": True,
        "serving_version": status.serving_version,
        "digest": serving.digest if serving else "",
        "requests_running": status.requests_running,
        "requests_waiting": status.requests_waiting,
        "draining": status.draining,
        "swap_failure": status.swap_failure,
    }


def _ask(settings: Settings, address: Address, timeout_s: float) -> control_pb2.ReplicaStatus | None:
    with open_sync_channel(settings, address.target, server_name=address.server_name) as channel:
        try:
            reply: control_pb2.ReplicaStatus = control_pb2_grpc.ControlServiceStub(channel).GetStatus(
                control_pb2.GetStatusRequest(), timeout=timeout_s
            )
        except grpc.RpcError:
            return None
    return reply
