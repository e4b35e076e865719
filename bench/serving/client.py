"""`python -m bench.serving.client`: one load on one server, a job on stdin and answers on stdout.

Job (JSON): `kind` ("sse", "policy" or "triton"), `address` (host:port), `streams`, `prompts` (text and token ids),
`max_tokens`, `sampling`, `body` (fields of the REST request that only this server wants). Answers: a list of `Answer`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from bench.serving.load import closed_loop
from bench.serving.sse import Connection, Raw, answer_of
from bench.serving.stats import Answer

TIMEOUT = 300.0  # seconds for one answer
Ask = Callable[[int, dict[str, Any]], Awaitable[Answer | Raw]]


@asynccontextmanager
async def sse(job: dict[str, Any]) -> AsyncIterator[Ask]:
    host, port = job["address"].rsplit(":", 1)
    connections = [Connection(host, int(port)) for _ in range(job["streams"])]

    async def ask(client: int, prompt: dict[str, Any]) -> Raw:
        body = {
            "messages": [{"role": "user", "content": prompt["text"]}],
            "stream": True,
            "max_completion_tokens": job["max_tokens"],
            **job["sampling"],
            **job["body"],
        }
        return await connections[client].ask(body, TIMEOUT)

    yield ask
    for connection in connections:
        connection.close()


@asynccontextmanager
async def policy(job: dict[str, Any]) -> AsyncIterator[Ask]:
    import grpc

    from protos.anyloop.v1 import policy_pb2, policy_pb2_grpc, types_pb2

    bias = {int(token): value for token, value in job["sampling"].get("logit_bias", {}).items()}
    sampling = {**job["sampling"], "max_tokens": job["max_tokens"], **({"logit_bias": bias} if bias else {})}

    async def ask(client: int, prompt: dict[str, Any]) -> Answer:
        message = types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.ContentPart(text=prompt["text"])])
        request = policy_pb2.GenerateRequest(
            messages=[message],
            modalities=[types_pb2.MODALITY_TEXT],
            sampling=types_pb2.SamplingParams(**sampling),
        )
        answer = Answer(time.perf_counter())
        try:
            async for event in stub.Generate(request, timeout=TIMEOUT):
                if event.WhichOneof("event") == "text":
                    answer.arrivals.append(time.perf_counter())
                    answer.counts.append(len(event.text.token_ids))
                    answer.text += event.text.text
        except grpc.aio.AioRpcError as error:
            answer.error = f"{error.code().name}: {error.details()}"
        return answer

    async with grpc.aio.insecure_channel(job["address"]) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        yield ask


@asynccontextmanager
async def triton(job: dict[str, Any]) -> AsyncIterator[Ask]:
    from contextlib import aclosing

    from services.hosts.interface import HostError
    from services.hosts.triton_host import TritonHost

    host = TritonHost(job["address"], ("policy",))

    async def ask(client: int, prompt: dict[str, Any]) -> Answer:
        request = {
            "op": "generate",
            "prompt": prompt["tokens"],
            "sampling": {"max_tokens": job["max_tokens"], **job["sampling"]},
            "modalities": ["text"],
        }
        answer = Answer(time.perf_counter())
        try:
            async with aclosing(host.stream("policy", request, timeout=TIMEOUT)) as payloads:
                async for payload in payloads:
                    tokens = payload.get("tokens", ())
                    if len(tokens):
                        answer.arrivals.append(time.perf_counter())
                        answer.counts.append(len(tokens))
        except HostError as error:
            answer.error = str(error)
        return answer

    try:
        yield ask
    finally:
        await host.close()


KINDS = {"sse": sse, "policy": policy, "triton": triton}


async def load(job: dict[str, Any]) -> list[Answer]:
    async with KINDS[job["kind"]](job) as ask:
        answers = await closed_loop(job["prompts"], job["streams"], ask)
    # Taken apart only now: while it measures, the client leaves the cores to the servers.
    return [answer_of(answer) if isinstance(answer, Raw) else answer for answer in answers]


if __name__ == "__main__":
    json.dump([asdict(answer) for answer in asyncio.run(load(json.load(sys.stdin)))], sys.stdout)
