"""Real servers on loopback ports that answer PolicyService.Generate in a few milliseconds, and a client under load."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import grpc

from protos.anyloop.v1 import policy_pb2, policy_pb2_grpc
from services.rpc.errors import RpcError
from services.rpc.server import CONNECTION_SECONDS, RpcServer

SERVICE = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name


class Replica(policy_pb2_grpc.PolicyServiceServicer):
    """Says its name in each answer. `thinking` seconds before the first message, `speaking` before the last."""

    def __init__(self, name: str, thinking: float = 0.005, speaking: float = 0.005) -> None:
        self.name, self.thinking, self.speaking = name, thinking, speaking
        self.connection_seconds = CONNECTION_SECONDS
        self.answered = 0
        self.refuses = False
        self.names: list[str] = []  # the DNS names that callers' certificates had
        self.server: RpcServer | None = None
        self.port = 0

    async def Generate(
        self, request: policy_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[policy_pb2.GenerateResponse]:
        self.names = [name.decode() for name in context.auth_context().get("peer_dns", ())]
        if self.refuses:
            raise RpcError(grpc.StatusCode.UNAVAILABLE, "draining")
        await asyncio.sleep(self.thinking)
        yield policy_pb2.GenerateResponse(started=policy_pb2.GenerateResponse.Started(response_id=self.name))
        await asyncio.sleep(self.speaking)
        self.answered += 1
        yield policy_pb2.GenerateResponse(finished=policy_pb2.GenerateResponse.Finished())

    async def start(self, host: str = "127.0.0.1", credentials: grpc.ServerCredentials | None = None) -> "Replica":
        """Listens where it did before, or on a free port."""
        self.server = RpcServer(
            f"{host}:{self.port}", credentials=credentials, connection_seconds=self.connection_seconds
        )
        self.server.add(SERVICE, policy_pb2_grpc.add_PolicyServiceServicer_to_server, self)
        await self.server.start()
        self.port = self.server.port
        await self.server.set_serving(True)
        return self

    async def stop(self, grace: float = 0.0) -> None:
        if self.server is not None:
            await self.server.stop(grace)
            self.server = None


@asynccontextmanager
async def replicas(
    count: int, credentials: Callable[[], grpc.ServerCredentials | None] = lambda: None
) -> AsyncIterator[list[Replica]]:
    made = [await Replica(f"replica-{index}").start(credentials=credentials()) for index in range(count)]
    try:
        yield made
    finally:
        for replica in made:
            await replica.stop()


class Listening(Protocol):
    name: str
    port: int


def addresses(made: Sequence[Listening]) -> str:
    return "ipv4:" + ",".join(f"127.0.0.1:{replica.port}" for replica in made)


async def ask(channel: grpc.aio.Channel, request: policy_pb2.GenerateRequest | None = None) -> str:
    """The name of the replica that answered to the end."""
    stub = policy_pb2_grpc.PolicyServiceStub(channel)
    name = ""
    async for event in stub.Generate(request or policy_pb2.GenerateRequest(), timeout=10):
        name = name or event.started.response_id
    return name


class Load:
    """`clients` that ask again and again until the block ends. `by` counts answers by replica; `failures` are
    those that nobody began to answer, `broken` those whose answer broke off."""

    def __init__(self, channel: grpc.aio.Channel, clients: int = 16) -> None:
        self._stub, self._clients = policy_pb2_grpc.PolicyServiceStub(channel), clients
        self._stopped = False
        self.by: Counter[str] = Counter()
        self.failures: list[str] = []
        self.broken: list[str] = []

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.create_task(self._client()) for _ in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped = True
        await asyncio.gather(*self._tasks)

    async def _client(self) -> None:
        while not self._stopped:
            name = ""
            try:
                async for event in self._stub.Generate(policy_pb2.GenerateRequest(), timeout=10):
                    name = name or event.started.response_id
                self.by[name] += 1
            except grpc.aio.AioRpcError as error:
                (self.broken if name else self.failures).append(f"{error.code().name}: {error.details()}")

    async def until(self, holds: Callable[["Counter[str]"], object], seconds: float = 10.0) -> None:
        """Until `holds` of the answers since now."""
        before = Counter(self.by)
        async with asyncio.timeout(seconds):
            while not holds(self.by - before):  # noqa: ASYNC110 - the clients are other tasks
                await asyncio.sleep(0.005)

    async def all_answer(self, *made: Listening) -> None:
        await self.until(lambda by: all(by[replica.name] >= 5 for replica in made))


async def _serve(name: str, port: int) -> None:
    replica = Replica(name, thinking=0.6, speaking=0.0)
    replica.port = port
    await replica.start()
    print(replica.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":  # as a process of its own, for tests that kill it
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
