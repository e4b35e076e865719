"""Edge gRPC: PolicyService.Generate and FeedbackService for clients, with health and reflection."""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import TypeAlias

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from anyloop.transport import edge_credentials
from protos.anyloop.v1 import feedback_pb2, feedback_pb2_grpc, policy_pb2, policy_pb2_grpc, scoring_pb2
from services.gateway.body import BODIES_IN_FLIGHT
from services.gateway.dataplane import DataPlane
from services.gateway.errors import GatewayError, Status, unavailable
from services.gateway.keys import Caller, Role
from services.rpc.observer import CallObserver

logger = logging.getLogger(__name__)
Context: TypeAlias = grpc.aio.ServicerContext
POLICY = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
FEEDBACK = feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"].full_name


class HeldBytes:
    """The requests that are being read may hold `budget` bytes together: what BodyLimit is for REST."""

    def __init__(self, budget: int) -> None:
        self._budget, self._held = budget, 0

    @contextmanager
    def reading(self, request: Message) -> Iterator[None]:
        """Raises GatewayError (UNAVAILABLE)."""
        size = request.ByteSize()
        if self._held + size > self._budget:
            raise unavailable("too many large requests are in flight; try again shortly")
        self._held += size
        try:
            yield
        finally:
            self._held -= size


class EdgePolicy(policy_pb2_grpc.PolicyServiceServicer):
    def __init__(self, plane: DataPlane, held: HeldBytes) -> None:
        self._plane, self._held = plane, held

    async def Generate(
        self, request: policy_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[policy_pb2.GenerateResponse]:
        try:
            caller = _caller(self._plane, context)
            self._plane.admit(caller, Role.GENERATE)
            with self._held.reading(request):
                prepared = await self._plane.prepare(request, caller)
                request.Clear()  # gRPC would keep its media in memory until the answer ends
            async with aclosing(self._plane.stream(prepared, context.time_remaining())) as events:
                async for event in events:
                    yield event
        except GatewayError as error:
            await _abort(context, error)
        except Exception as error:
            await _fail(context, error)

    async def Score(self, request: scoring_pb2.ScoreRequest, context: Context) -> scoring_pb2.ScoreResponse:
        """For the trainer and the gate, behind the gateway."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "scores are served inside the cluster, not to clients")
        raise AssertionError("abort raises")


class EdgeFeedback(feedback_pb2_grpc.FeedbackServiceServicer):
    def __init__(self, plane: DataPlane, held: HeldBytes) -> None:
        self._plane, self._held = plane, held

    async def SubmitFeedback(
        self, request: feedback_pb2.SubmitFeedbackRequest, context: Context
    ) -> feedback_pb2.SubmitFeedbackResponse:
        try:
            with self._held.reading(request):
                return await self._plane.submit_feedback(request, _caller(self._plane, context))
        except GatewayError as error:
            await _abort(context, error)
        except Exception as error:
            await _fail(context, error)
        raise AssertionError("abort raises")


class EdgeServer:
    """In plain text, or encrypted with the edge's certificate.

    `start` listens and serves; `drain` says so on the health service; `stop` ends what still runs after `grace`.
    """

    def __init__(self, plane: DataPlane, address: str) -> None:
        limit = plane.settings.max_body_bytes
        held = HeldBytes(limit * BODIES_IN_FLIGHT)
        self._server = grpc.aio.server(
            interceptors=[CallObserver(edge=True)],
            options=(("grpc.max_receive_message_length", limit), ("grpc.so_reuseport", 0)),
        )
        self._health = health.aio.HealthServicer()
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(EdgePolicy(plane, held), self._server)
        feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(EdgeFeedback(plane, held), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (POLICY, FEEDBACK, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        credentials = edge_credentials(plane.settings)
        self.port = (
            self._server.add_insecure_port(address)
            if credentials is None
            else self._server.add_secure_port(address, credentials)
        )

    async def start(self) -> None:
        await self._server.start()
        for service in ("", POLICY, FEEDBACK):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        await self._server.stop(grace_s)


def _caller(plane: DataPlane, context: Context) -> Caller:
    metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
    authorization = metadata.get("authorization")
    return plane.keys.authenticate(authorization if isinstance(authorization, str) else None)


async def _abort(context: Context, error: GatewayError) -> None:
    await context.abort(error.status, error.message, error.trailers)


async def _fail(context: Context, error: Exception) -> None:
    """Never a bare UNKNOWN. `abort` raises an exception of its own, which must pass."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    logger.error("an edge call failed", exc_info=error)
    await context.abort(Status.INTERNAL, "the gateway failed on this request; try again")
