"""ControlService: how an operator, the gate and the controller look at and change one replica."""

from collections.abc import Awaitable, Callable

import grpc

from protos.anyloop.v1 import control_pb2, control_pb2_grpc
from services.replica.inflight import InFlight
from services.replica.promotions import Promotions
from services.replica.weights import Resident, SwapMode, Weights
from services.rpc.errors import invalid

SERVICE = control_pb2.DESCRIPTOR.services_by_name["ControlService"].full_name
DEFAULT_DRAIN_SECONDS = 30.0
_MODES: dict[int, SwapMode] = {
    control_pb2.SWAP_MODE_UNSPECIFIED: "",
    control_pb2.SWAP_MODE_FINISH: "finish",
    control_pb2.SWAP_MODE_KEEP: "keep",
    control_pb2.SWAP_MODE_RECOMPUTE: "recompute",
}


class ControlServer(control_pb2_grpc.ControlServiceServicer):
    """`stop_serving` turns the health of the replica's public port to NOT_SERVING for good."""

    def __init__(
        self,
        weights: Weights,
        promotions: Promotions,
        inflight: InFlight,
        stop_serving: Callable[[], Awaitable[None]],
    ) -> None:
        self._weights = weights
        self._promotions = promotions
        self._inflight = inflight
        self._stop_serving = stop_serving

    async def GetStatus(
        self, request: control_pb2.GetStatusRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.ReplicaStatus:
        state = await self._weights.state()
        return control_pb2.ReplicaStatus(
            model_name=self._weights.lineage,
            serving_version=state.serving,
            weights=[_info(weights) for weights in state.resident.values()],
            requests_running=state.running,
            requests_waiting=state.waiting,
            forward=state.forward,
            kv_cache_bytes=state.cache_bytes,
            reused_prompt_tokens=state.reused_prompt_tokens,
            draining=self._inflight.draining,
            wanted_version=self._promotions.wanted,
            swap_failure=self._promotions.failure,
        )

    async def LoadWeights(
        self, request: control_pb2.LoadWeightsRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.WeightsInfo:
        loaded = await self._weights.load(_named(request.version))
        return _info((await self._weights.state()).resident.get(request.version, loaded))

    async def ActivateWeights(
        self, request: control_pb2.ActivateWeightsRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.ActivateWeightsResponse:
        if request.mode not in _MODES:
            raise invalid(f"swap mode {request.mode} is unknown: use FINISH, KEEP or RECOMPUTE")
        switch = await self._promotions.activate(_named(request.version), _MODES[request.mode])
        return control_pb2.ActivateWeightsResponse(
            weights=_info((await self._weights.state()).resident.get(request.version, switch.weights)),
            previous_version=switch.previous,
            stall_seconds=switch.stall_seconds,
            load_seconds=switch.load_seconds,
            longest_step_gap_seconds=switch.longest_step_gap,
            median_step_gap_seconds=switch.median_step_gap,
        )

    async def UnloadWeights(
        self, request: control_pb2.UnloadWeightsRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.UnloadWeightsResponse:
        await self._weights.unload(_named(request.version))
        return control_pb2.UnloadWeightsResponse()

    async def Drain(
        self, request: control_pb2.DrainRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.DrainResponse:
        if request.timeout_seconds < 0:
            raise invalid("timeout_seconds must be 0 (the default of 30 seconds) or more")
        await self._stop_serving()
        aborted = await self._inflight.drain(request.timeout_seconds or DEFAULT_DRAIN_SECONDS)
        return control_pb2.DrainResponse(aborted_requests=aborted)


def _named(version: str) -> str:
    if not version:
        raise invalid("version is empty: name a version of the registry")
    return version


def _info(weights: Resident) -> control_pb2.WeightsInfo:
    return control_pb2.WeightsInfo(
        version=weights.version,
        digest=weights.digest,
        serving=weights.serving,
        running_requests=weights.running_requests,
    )
