"""`python -m bench.serving.client`: one load on one server, a job on stdin and answers on stdout.

Job (JSON): `kind` ("sse", "policy" or "triton"), `address` (host:port), `streams`, `prompts` (text and token ids),
`max_tokens`, `sampling`, `body` (fields of the REST request that only this server wants). Answers: a list of `Answer`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict
from typing import Any

from bench.serving.load import closed_loop
from bench.serving.stats import Answer

TIMEOUT = 300.0  # seconds for one answer


async def over_sse(job: dict[str, Any]) -> list[Answer]:
    from bench.serving.sse import Connection, Raw, answer_of

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

    raws = await closed_loop(job["prompts"], job["streams"], ask)
    for connection in connections:
        connection.close()
    return [answer_of(raw) for raw in raws]


async def over_policy_grpc(job: dict[str, Any]) -> list[Answer]:
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
        return await closed_loop(job["prompts"], job["streams"], ask)


async def over_triton(job: dict[str, Any]) -> list[Answer]:
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
        return await closed_loop(job["prompts"], job["streams"], ask)
    finally:
        await host.close()


KINDS = {"sse": over_sse, "policy": over_policy_grpc, "triton": over_triton}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    json.dump([asdict(answer) for answer in asyncio.run(KINDS[given["kind"]](given))], sys.stdout)
