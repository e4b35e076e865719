"""The port to the replicas' ControlService, and its gRPC side."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import grpc

from anyloop.config import Settings
from anyloop.transport import open_channel
from k8s.pods import Pod
from protos.anyloop.v1 import control_pb2, control_pb2_grpc

_MODES = {
    "": control_pb2.SWAP_MODE_UNSPECIFIED,
    "finish": control_pb2.SWAP_MODE_FINISH,
    "keep": control_pb2.SWAP_MODE_KEEP,
    "recompute": control_pb2.SWAP_MODE_RECOMPUTE,
}
_OPEN_CHANNELS = 256  # to the replicas used last; connecting again costs a millisecond


class Fault(StrEnum):
    AWAY = "away"  # nobody answered, or not in time: the same call may succeed
    REFUSED = "refused"  # the weights are at fault: corrupt, of another shape; no replica will take them
    BROKE = "broke"  # the replica tried and failed
    DENIED = "denied"  # the replica does not let this controller change it


class ReplicaError(Exception):
    def __init__(self, message: str, fault: Fault = Fault.AWAY) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class Served:
    """What a replica says of itself."""

    version: str
    digest: str = ""
    failure: str = ""  # why it does not serve what the log promoted


class Replicas(Protocol):
    """Raises ReplicaError. Deadlines are the caller's."""

    async def status(self, pod: Pod) -> Served: ...

    async def activate(self, pod: Pod, version: str, mode: str) -> Served:
        """Until the weights serve; the old ones go on serving when it raises."""
        ...


_FAULTS = {
    grpc.StatusCode.FAILED_PRECONDITION: Fault.REFUSED,
    grpc.StatusCode.INVALID_ARGUMENT: Fault.REFUSED,
    grpc.StatusCode.INTERNAL: Fault.BROKE,
    grpc.StatusCode.UNKNOWN: Fault.BROKE,
    grpc.StatusCode.DATA_LOSS: Fault.BROKE,
    grpc.StatusCode.PERMISSION_DENIED: Fault.DENIED,
    grpc.StatusCode.UNAUTHENTICATED: Fault.DENIED,
    grpc.StatusCode.UNIMPLEMENTED: Fault.DENIED,
}


class GrpcReplicas:
    """Satisfies Replicas. Channels stay open to the replicas that were used last."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._channels: OrderedDict[str, grpc.aio.Channel] = OrderedDict()
        self._users: dict[str, int] = {}

    async def status(self, pod: Pod) -> Served:
        answer = await self._call(pod, "GetStatus", control_pb2.GetStatusRequest())
        serving = next((one for one in answer.weights if one.serving), control_pb2.WeightsInfo())
        return Served(answer.serving_version, serving.digest, answer.swap_failure)

    async def activate(self, pod: Pod, version: str, mode: str) -> Served:
        request = control_pb2.ActivateWeightsRequest(version=version, mode=_MODES[mode])
        answer = await self._call(pod, "ActivateWeights", request)
        return Served(answer.weights.version, answer.weights.digest)

    async def close(self) -> None:
        channels = list(self._channels.values())
        self._channels.clear()
        await asyncio.gather(*(channel.close() for channel in channels))

    async def _call(self, pod: Pod, method: str, request: object) -> "control_pb2.ReplicaStatus":
        address = pod.control_address
        stub = control_pb2_grpc.ControlServiceStub(self._channel(address))
        self._users[address] = self._users.get(address, 0) + 1
        try:
            return await getattr(stub, method)(request)
        except grpc.aio.AioRpcError as error:
            fault = _FAULTS.get(error.code(), Fault.AWAY)
            raise ReplicaError(f"{pod.name}: {error.code().name}: {error.details()}", fault) from error
        finally:
            self._users[address] -= 1
            if not self._users[address]:
                del self._users[address]
            await self._close_oldest()

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = open_channel(self._settings, address)
        self._channels.move_to_end(address)
        return self._channels[address]

    async def _close_oldest(self) -> None:
        for address in list(self._channels):
            if len(self._channels) <= _OPEN_CHANNELS:
                return
            if address not in self._users:
                await self._channels.pop(address).close()
