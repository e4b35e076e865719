"""The replicas of one lineage as each of them says it is: what serves where, and whether the fleet is mixed."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from anyloop.config import Settings
from anyloop.transport import Address, addresses, open_channel
from protos.anyloop.v1 import control_pb2, control_pb2_grpc

_TIMEOUT_S = 0.5
_AT_ONCE = 64  # replicas that are asked together
_FRESH_S = 1.0  # an answer this young does for the next who asks
_NAMES_S = 5.0  # how often the name service is asked


@dataclass(frozen=True)
class Seen:
    """One replica; `status` is None when it does not answer."""

    address: str
    status: control_pb2.ReplicaStatus | None


class Fleet:
    """Asks all replicas behind the control target `target`. However many look, each replica is asked once a second at
    most. Belongs to one event loop."""

    def __init__(self, settings: Settings, target: str) -> None:
        self._settings, self._target = settings, target
        self._channels: dict[Address, grpc.aio.Channel] = {}
        self._known: list[Address] = []
        self._named = self._looked = float("-inf")
        self._look: asyncio.Task[list[Seen]] | None = None

    async def replicas(self) -> list[Seen]:
        """In the order of their addresses; empty when the name of the target means nobody."""
        if self._look is None or (self._look.done() and time.monotonic() - self._looked > _FRESH_S):
            self._look = asyncio.create_task(self._ask_all())
        return await asyncio.shield(self._look)

    async def close(self) -> None:
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait([self._look])
        for channel in self._channels.values():
            await channel.close()

    async def _ask_all(self) -> list[Seen]:
        if time.monotonic() - self._named > _NAMES_S:
            self._known = await asyncio.to_thread(addresses, self._target)
            self._named = time.monotonic()
            for gone in self._channels.keys() - set(self._known):
                await self._channels.pop(gone).close()
        turn = asyncio.Semaphore(_AT_ONCE)

        async def ask(address: Address) -> Seen:
            async with turn:
                return Seen(address.target, await self._ask(address))

        seen = list(await asyncio.gather(*(ask(address) for address in self._known)))
        self._looked = time.monotonic()
        return seen

    async def _ask(self, address: Address) -> control_pb2.ReplicaStatus | None:
        if address not in self._channels:
            self._channels[address] = open_channel(self._settings, address.target, server_name=address.server_name)
        stub = control_pb2_grpc.ControlServiceStub(self._channels[address])
        try:
            status: control_pb2.ReplicaStatus = await stub.GetStatus(control_pb2.GetStatusRequest(), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return None
        return status


def versions(seen: list[Seen]) -> dict[str, int]:
    """How many replicas serve which version, the most common first; of two as common the newer."""
    counted = Counter(one.status.serving_version for one in seen if one.status and one.status.serving_version)
    return dict(sorted(counted.items(), key=lambda item: (item[1], item[0]), reverse=True))


def everywhere(seen: list[Seen]) -> list[str]:
    """The versions that any replica would answer for, as the first one lists them."""
    resident = [[weights.version for weights in one.status.weights] for one in seen if one.status]
    return (
        [version for version in dict.fromkeys(resident[0]) if all(version in r for r in resident)] if resident else []
    )


def described(seen: list[Seen]) -> dict[str, Any]:
    """For the state of the loop: a replica that stands for the rest, with `replicas` (each one), `versions` and
    `mixed`. Requests are those of all."""
    reachable = [one for one in seen if one.status is not None]
    if not reachable:
        return {"reachable": False, "replicas": [_row(one) for one in seen], "versions": {}, "mixed": False}
    counted = versions(seen)
    usual = next(iter(counted), "")
    chosen = next(one for one in reachable if one.status and one.status.serving_version == usual)
    total = {
        name: sum(getattr(one.status, name) for one in reachable) for name in ("requests_running", "requests_waiting")
    }
    return {
        "reachable": True,
        **MessageToDict(chosen.status, preserving_proto_field_name=True),
        **{name: count for name, count in total.items() if count},
        "replicas": [_row(one) for one in seen],
        "versions": counted,
        "mixed": len(counted) > 1,
    }


def _row(one: Seen) -> dict[str, Any]:
    if one.status is None:
        return {"address": one.address, "reachable": False}
    serving = next((weights for weights in one.status.weights if weights.serving), None)
    return {
        "address": one.address,
        "reachable": True,
        "serving_version": one.status.serving_version,
        "digest": serving.digest if serving else "",
        "requests_running": one.status.requests_running,
        "requests_waiting": one.status.requests_waiting,
        "draining": one.status.draining,
        "swap_failure": one.status.swap_failure,
    }
