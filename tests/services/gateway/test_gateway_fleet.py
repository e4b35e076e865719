"""Several policy replicas behind one gateway: each is seen, a mixed fleet shows, and an answer that nobody saw is
asked for again."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from anyloop.config import Settings
from protos.anyloop.v1 import control_pb2, control_pb2_grpc, policy_pb2
from services.gateway.attempts import answered
from services.gateway.fleet import Fleet, Seen, described, everywhere, versions

OLD, NEW = "policy-000001", "policy-000002"
PLAIN = Settings(_env_file=None)


class Control(control_pb2_grpc.ControlServiceServicer):
    def __init__(self, serving: str, *staged: str) -> None:
        self.serving, self.staged, self.asked = serving, staged, 0

    async def GetStatus(self, request: Any, context: Any) -> control_pb2.ReplicaStatus:
        self.asked += 1
        return status(self.serving, *self.staged)


def status(serving: str, *staged: str, running: int = 1) -> control_pb2.ReplicaStatus:
    weights = [control_pb2.WeightsInfo(version=serving, digest="d" * 64, serving=True)]
    weights += [control_pb2.WeightsInfo(version=version) for version in staged]
    return control_pb2.ReplicaStatus(
        model_name="policy", serving_version=serving, weights=weights, requests_running=running
    )


@asynccontextmanager
async def fleet_of(*controls: Control | None) -> AsyncIterator[Fleet]:
    """None is a replica that is away."""
    async with AsyncExitStack() as stack:
        ports = []
        for control in controls:
            server = grpc.aio.server()
            ports.append(server.add_insecure_port("127.0.0.1:0"))
            if control is None:
                await server.stop(0)
                continue
            control_pb2_grpc.add_ControlServiceServicer_to_server(control, server)
            await server.start()
            stack.push_async_callback(server.stop, 0)
        fleet = Fleet(PLAIN, "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports))
        stack.push_async_callback(fleet.close)
        yield fleet


async def test_every_replica_is_asked_and_a_mixed_fleet_shows() -> None:
    async with fleet_of(Control(OLD, NEW), Control(NEW, OLD), Control(NEW), None) as fleet:
        seen = await fleet.replicas()
    report = described(seen)
    assert report["versions"] == {NEW: 2, OLD: 1}
    assert report["mixed"] is True
    assert report["serving_version"] == NEW
    assert report["requests_running"] == 3
    assert [row["reachable"] for row in report["replicas"]] == [True, True, True, False]
    assert report["replicas"][0]["digest"] == "d" * 64
    assert everywhere(seen) == [NEW]


async def test_who_looks_often_asks_each_replica_once_a_second() -> None:
    control = Control(OLD)
    async with fleet_of(control) as fleet:
        for _ in range(20):
            assert [one.status is not None for one in await fleet.replicas()] == [True]
    assert control.asked == 1


async def test_a_fleet_that_is_away_is_told_as_such() -> None:
    async with fleet_of(None, None) as fleet:
        report = described(await fleet.replicas())
    assert report["reachable"] is False
    assert len(report["replicas"]) == 2
    assert everywhere([]) == []


def test_of_versions_as_common_the_newer_stands_for_the_fleet() -> None:
    assert list(versions([Seen("a", status(OLD)), Seen("b", status(NEW))])) == [NEW, OLD]


async def test_the_state_of_the_loop_lists_the_replicas(world: Any, fake: Any) -> None:
    policy = (await world.http.get("/v1/loop")).json()["policy"]
    assert policy["versions"] == {fake.VERSION: 1}
    assert policy["mixed"] is False
    assert [row["serving_version"] for row in policy["replicas"]] == [fake.VERSION]


def call(*outcomes: policy_pb2.GenerateResponse | grpc.StatusCode) -> Any:
    class Call:
        cancelled = False

        async def __aiter__(self) -> AsyncIterator[policy_pb2.GenerateResponse]:
            for outcome in outcomes:
                if isinstance(outcome, grpc.StatusCode):
                    raise grpc.aio.AioRpcError(outcome, grpc.aio.Metadata(), grpc.aio.Metadata(), "broke off")
                yield outcome

        def cancel(self) -> None:
            self.cancelled = True

    return Call()


EVENT = policy_pb2.GenerateResponse(text=policy_pb2.GenerateResponse.TextDelta(text="so"))
AWAY = grpc.StatusCode.UNAVAILABLE


async def outcome(*calls: Any, seconds: float = 10.0) -> tuple[int, int]:
    """(events, calls made); raises what comes through."""
    left, told = list(calls), []

    def ask(timeout: float, asked_before: int) -> Any:
        told.append(asked_before)
        return left.pop(0)

    events = [event async for event in answered(ask, seconds)]
    assert told == list(range(len(told)))
    return len(events), len(calls) - len(left)


async def test_an_answer_that_broke_off_unseen_is_asked_for_once_more() -> None:
    assert await outcome(call(AWAY), call(EVENT, EVENT)) == (2, 2)
    first, second, third = call(AWAY), call(AWAY), call(EVENT)
    with pytest.raises(grpc.aio.AioRpcError):
        await outcome(first, second, third)
    assert (first.cancelled, second.cancelled, third.cancelled) == (True, True, False)


@pytest.mark.parametrize("failing", [(EVENT, AWAY), (grpc.StatusCode.INTERNAL,)], ids=["seen", "failed"])
async def test_what_was_seen_or_failed_is_not_asked_for_again(failing: Any) -> None:
    spare = call(EVENT)
    with pytest.raises(grpc.aio.AioRpcError):
        await outcome(call(*failing), spare)
    assert not spare.cancelled
