"""A server knows which attempt at a request it is working on, whoever sent it again."""

from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from anyloop.config import Settings
from anyloop.transport import open_channel
from protos.anyloop.v1 import policy_pb2, policy_pb2_grpc
from services.rpc.attempt import attempt_of, metadata_of
from services.rpc.errors import RpcError
from services.rpc.server import RpcServer
from tests.transport.replicas import SERVICE, ask


class Refusing(policy_pb2_grpc.PolicyServiceServicer):
    """Takes the third call."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[policy_pb2.GenerateResponse]:
        self.seen.append(attempt_of(context))
        if len(self.seen) < 3:
            raise RpcError(grpc.StatusCode.UNAVAILABLE, "draining")
        yield policy_pb2.GenerateResponse(started=policy_pb2.GenerateResponse.Started(response_id="here"))


async def test_what_grpc_sends_again_counts() -> None:
    servicer, server = Refusing(), RpcServer("127.0.0.1:0")
    server.add(SERVICE, policy_pb2_grpc.add_PolicyServiceServicer_to_server, servicer)
    await server.start()
    await server.set_serving(True)
    async with open_channel(Settings(_env_file=None), f"127.0.0.1:{server.port}", service=SERVICE) as channel:
        assert await ask(channel) == "here"
    await server.stop(0)
    assert servicer.seen == [0, 1, 2]


def attempt(sent: Sequence[tuple[str, str]]) -> int:
    return attempt_of(SimpleNamespace(invocation_metadata=lambda: tuple(sent)))  # type: ignore[arg-type]


def test_every_attempt_of_a_later_call_comes_after_all_of_the_one_before() -> None:
    sent = [("grpc-previous-rpc-attempts", "4")]
    assert attempt([]) < attempt(sent) < attempt(metadata_of(1)) < attempt([*metadata_of(1), *sent])
    assert metadata_of(0) == ()


@pytest.mark.parametrize("value", ["-1", "many", "", "\u0663", "9" * 30])
def test_what_is_no_count_is_the_first_attempt(value: str) -> None:
    assert attempt([("x-anyloop-asked-before", value)]) == 0


def test_a_count_stays_within_the_field_that_keeps_it() -> None:
    assert attempt([("x-anyloop-asked-before", "999999999"), ("grpc-previous-rpc-attempts", "999999999")]) < 2**31
