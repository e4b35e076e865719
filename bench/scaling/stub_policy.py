"""`python -m bench.scaling.stub_policy PORT`: a policy service that answers at once, so the gateway alone costs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from protos.anyloop.v1 import policy_pb2, policy_pb2_grpc, types_pb2

MESSAGES = 16  # of a streamed answer, four tokens each


class StubPolicy(policy_pb2_grpc.PolicyServiceServicer):
    async def Generate(
        self, request: policy_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[policy_pb2.GenerateResponse]:
        response = policy_pb2.GenerateResponse
        yield response(started=response.Started(response_id=request.response_id, policy_version="stub"))
        message = types_pb2.Message(role=types_pb2.ROLE_ASSISTANT)
        message.parts.add(text="four tokens of text " * MESSAGES)
        for _ in range(MESSAGES):
            yield response(text=response.TextDelta(text="four tokens of text ", token_ids=[1, 2, 3, 4]))
        yield response(
            finished=response.Finished(
                finish_reason=types_pb2.FINISH_REASON_STOP,
                usage=types_pb2.Usage(prompt_tokens=32, completion_tokens=4 * MESSAGES),
                message=message,
            )
        )


async def serve(port: int) -> None:
    server = grpc.aio.server()
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(StubPolicy(), server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
