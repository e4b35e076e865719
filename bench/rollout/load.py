"""Clients of the policy service through one balanced channel, and an account of every request."""

import asyncio
import threading
import time
from dataclasses import dataclass, field

import grpc

from anyloop.config import Settings
from anyloop.transport import open_channel
from protos.anyloop.v1 import policy_pb2, policy_pb2_grpc, types_pb2

SERVICE = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
_PROMPTS = ("Draw two small red circles.", "What is the colour?", "Critique: refine the left one.", "Show me.")
_DEADLINE = 30.0


@dataclass(frozen=True)
class Attempt:
    began: float  # on the monotonic clock
    seconds: float
    code: str  # OK, or the gRPC status
    version: str = ""  # of the first token
    mixed: bool = False  # tokens of more than one version
    longest_gap: float = 0.0  # seconds between two portions
    details: str = ""


@dataclass
class Load:
    """`with Load(target) as load: ...`; then `load.attempts`. `clients` ask one after another without a pause."""

    target: str
    clients: int = 6
    max_tokens: int = 24
    pause: float = 0.0  # seconds between an answer and the next request of a client
    attempts: list[Attempt] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Asks nothing more, and waits for what is under way."""
        self._ended.set()
        self._thread.join(_DEADLINE + 5)

    @property
    def failed(self) -> list[Attempt]:
        return [one for one in self.attempts if one.code != "OK"]

    def since(self, began: float) -> list[Attempt]:
        return [one for one in self.attempts if one.began >= began]

    async def _run(self) -> None:
        settings = Settings(_env_file=None)  # type: ignore[call-arg]
        async with open_channel(settings, self.target, service=SERVICE) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)  # type: ignore[no-untyped-call]
            await asyncio.gather(*(self._client(stub, number) for number in range(self.clients)))

    async def _client(self, stub: policy_pb2_grpc.PolicyServiceStub, number: int) -> None:
        turn = number
        while not self._ended.is_set():
            turn += self.clients
            self.attempts.append(await self._ask(stub, turn))
            await asyncio.sleep(self.pause)

    async def _ask(self, stub: policy_pb2_grpc.PolicyServiceStub, turn: int) -> Attempt:
        request = policy_pb2.GenerateRequest(
            messages=[
                types_pb2.Message(
                    role=types_pb2.ROLE_USER, parts=[types_pb2.ContentPart(text=_PROMPTS[turn % len(_PROMPTS)])]
                )
            ],
            modalities=[types_pb2.MODALITY_TEXT],
            sampling=types_pb2.SamplingParams(max_tokens=self.max_tokens, seed=turn),
        )
        began = last = time.monotonic()
        gap = 0.0
        finished = None
        try:
            async for event in stub.Generate(request, timeout=_DEADLINE):
                now = time.monotonic()
                gap, last = max(gap, now - last), now
                if event.HasField("finished"):
                    finished = event.finished
        except grpc.aio.AioRpcError as error:
            seconds = time.monotonic() - began
            return Attempt(began, seconds, error.code().name, longest_gap=gap, details=error.details() or "")
        seconds = time.monotonic() - began
        if finished is None or not finished.output_token_ids:
            return Attempt(began, seconds, "BROKEN", longest_gap=gap, details="the stream ended without an answer")
        spans = finished.version_spans
        return Attempt(began, seconds, "OK", spans[0].version, len(spans) > 1, gap)
