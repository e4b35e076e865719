"""What is swapped under load: AnyLoop's program in this process, or the policy service with Triton behind it."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol

import grpc

from anyloop.config import Settings
from bench.serving.stack import Stack
from bench.swap.verdict import Reply, Swap
from protos.anyloop.v1 import control_pb2, control_pb2_grpc, policy_pb2, policy_pb2_grpc, types_pb2
from services.hosts.inprocess_host import InprocessHost
from services.policy.program import PolicyProgram

_MODES = {
    "finish": control_pb2.SWAP_MODE_FINISH,
    "keep": control_pb2.SWAP_MODE_KEEP,
    "recompute": control_pb2.SWAP_MODE_RECOMPUTE,
}
_SECONDS = 120.0


class Target(Protocol):
    """Answers are greedy, of text. Versions are named as `run` names them."""

    async def answer(self, number: int, prompt: list[int], max_tokens: int, version: str = "") -> Reply: ...

    async def load(self, version: str) -> None: ...

    async def swap(self, version: str, mode: str) -> Swap: ...

    async def quiet(self, seconds: float) -> float | None:
        """The longest gap between steps within `seconds` without a swap; None where nobody can say."""
        ...

    async def close(self) -> None: ...


class InProcess:
    def __init__(self, directory: Path, versions: dict[str, Path]) -> None:
        """`versions` names the folders that the swaps go between."""
        settings = Settings(_env_file=None, model_dir=directory, host="inprocess")  # type: ignore[call-arg]
        self._program = PolicyProgram(directory, settings)
        self._host = InprocessHost({"policy": self._program})
        self._versions = versions

    async def answer(self, number: int, prompt: list[int], max_tokens: int, version: str = "") -> Reply:
        reply = Reply(number)
        request = {
            "op": "generate",
            "request_id": str(number),
            "prompt": prompt,
            "modalities": ["text"],
            "version": version,
            "sampling": {"temperature": 0.0, "max_tokens": max_tokens},
            "key": str(number),
        }
        try:
            async with aclosing(self._host.stream("policy", request, timeout=_SECONDS)) as portions:
                async for portion in portions:
                    if "tokens" in portion:
                        reply.arrivals.append(time.monotonic())
                        reply.tokens.extend(int(token) for token in portion["tokens"])
                    if "finished" in portion:
                        reply.finished = portion["finished"] in ("stop", "length")
                        reply.spans = [(str(v), int(b), int(e)) for v, b, e in portion["version_spans"]]
        except Exception as error:
            reply.error = f"{type(error).__name__}: {error}"
        return reply

    async def load(self, version: str) -> None:
        await self._load(version)

    async def swap(self, version: str, mode: str) -> Swap:
        began = time.monotonic()
        loaded = await self._load(version)
        switched = await self._host.call("policy", {"op": "activate", "version": version, "mode": mode})
        return Swap(
            began,
            time.monotonic(),
            load=float(loaded["load_seconds"]),
            switch=float(switched["stall_seconds"]),
            longest_gap=max(float(part.get("longest_step_gap_seconds", 0.0)) for part in (loaded, switched)),
            usual_gap=float((switched | loaded)["median_step_gap_seconds"]),
        )

    async def quiet(self, seconds: float) -> float | None:
        window = self._program.gaps.open()
        await asyncio.sleep(seconds)
        self._program.gaps.close(window)
        return window.longest

    async def close(self) -> None:
        await self._host.close()

    async def _load(self, version: str) -> dict[str, Any]:
        request = {"op": "load", "version": version, "path": str(self._versions[version]), "urgent": True}
        return await self._host.call("policy", request, timeout=_SECONDS)


class ThroughTriton:
    def __init__(self, stack: Stack) -> None:
        self._channels = [grpc.aio.insecure_channel(address) for address in (stack.policy, stack.control)]
        self._policy = policy_pb2_grpc.PolicyServiceStub(self._channels[0])
        self._control = control_pb2_grpc.ControlServiceStub(self._channels[1])

    async def answer(self, number: int, prompt: list[int], max_tokens: int, version: str = "") -> Reply:
        reply = Reply(number)
        request = policy_pb2.GenerateRequest(
            prompt_token_ids=prompt,
            modalities=[types_pb2.MODALITY_TEXT],
            sampling=types_pb2.SamplingParams(temperature=0.0, max_tokens=max_tokens),
            policy_version=version,
            tokens_only=True,
            principal=str(number),
        )
        try:
            async for event in self._policy.Generate(request, timeout=_SECONDS):
                if event.HasField("text"):
                    reply.arrivals.append(time.monotonic())
                elif event.HasField("finished"):
                    done = event.finished
                    reply.tokens = list(done.output_token_ids)
                    reply.spans = [(span.version, span.begin, span.end) for span in done.version_spans]
                    reply.finished = done.finish_reason != types_pb2.FINISH_REASON_CANCELLED
        except grpc.aio.AioRpcError as error:
            reply.error = f"{error.code().name}: {error.details()}"
        return reply

    async def load(self, version: str) -> None:
        await self._control.LoadWeights(control_pb2.LoadWeightsRequest(version=version), timeout=_SECONDS)

    async def swap(self, version: str, mode: str) -> Swap:
        began = time.monotonic()
        request = control_pb2.ActivateWeightsRequest(version=version, mode=_MODES[mode])
        done = await self._control.ActivateWeights(request, timeout=_SECONDS)
        return Swap(
            began,
            time.monotonic(),
            load=done.load_seconds,
            switch=done.stall_seconds,
            longest_gap=done.longest_step_gap_seconds,
            usual_gap=done.median_step_gap_seconds,
        )

    async def quiet(self, seconds: float) -> float | None:
        await asyncio.sleep(seconds)
        return None

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
