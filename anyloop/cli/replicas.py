"""What the replicas say of themselves over the control service."""

import grpc

from anyloop.cli.runfile import setting
from anyloop.config import Settings
from protos.anyloop.v1 import control_pb2, control_pb2_grpc


def replica_status(settings: Settings, lineage: str, timeout_s: float = 2.0) -> control_pb2.ReplicaStatus | None:
    """The replica of a lineage ("policy" or "critique"); None when it does not answer."""
    target = setting(settings, f"{lineage}_control_target")
    with grpc.insecure_channel(target) as channel:
        try:
            reply: control_pb2.ReplicaStatus = control_pb2_grpc.ControlServiceStub(channel).GetStatus(
                control_pb2.GetStatusRequest(), timeout=timeout_s
            )
        except grpc.RpcError:
            return None
    return reply
