"""What the gateway does, without a transport: admit, resolve media, ask the policy service, take feedback, report."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anyloop.config import Settings
from anyloop.log import EventLog
from anyloop.log.spool import SpooledWriter
from anyloop.media.store import MediaStore
from anyloop.telemetry import context
from anyloop.transport import open_channel
from protos.anyloop.v1 import feedback_pb2, policy_pb2, policy_pb2_grpc, types_pb2
from services.gateway.answer_span import AnswerSpan
from services.gateway.attempts import answered
from services.gateway.errors import GatewayError, Status, from_rpc, invalid, not_found, unavailable, unknown_fields
from services.gateway.feedback import FeedbackDesk
from services.gateway.fleet import Fleet, described, everywhere
from services.gateway.follower import ResponseFollower, log_identity
from services.gateway.keys import Caller, KeyRing, Role
from services.gateway.ledger import Ledger, LedgerError
from services.gateway.log_status import LogStatus
from services.gateway.media import MediaDesk
from services.gateway.quotas import tokens_used
from services.gateway.response_ids import NAME, carried_conversation, new_response_id
from services.gateway.schemas import MODEL_NAME
from services.rpc.attempt import metadata_of
from services.rpc.server import MAX_MESSAGE_BYTES

logger = logging.getLogger(__name__)
ALIASES = frozenset({MODEL_NAME, "policy", "tiny-omni"})  # all mean: the version that serves
_STATUS_TIMEOUT_S = 0.5
_NOBODY_SERVES = "policy service: no replica serves"
_SLOW_S = 2.0  # feedback that waits longer in the outbox is said to
_PROMPT_BYTES = MAX_MESSAGE_BYTES - 1024  # what the policy service takes, less room for the ids of other choices
POLICY_SERVICE = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
_LARGEST_ANSWER = ("grpc.max_receive_message_length", 64 * 2**20)


class DataPlane:
    """One per process; lives in one event loop. `close` releases what it opened, not the log and the outbox."""

    def __init__(
        self, settings: Settings, log: EventLog, outbox: SpooledWriter, store: MediaStore, keys: KeyRing
    ) -> None:
        self.settings, self.keys, self._outbox = settings, keys, outbox
        self.media = MediaDesk(store, settings)
        self.ledger = Ledger(settings.home / "gateway" / "ledger.db")
        self.feedback = FeedbackDesk(outbox, self.ledger, self.media)
        if self.ledger.belong_to(log_identity(settings.effective_log_url)):
            logger.warning("the event log is another one than before: its responses are read anew")
        self._follower = ResponseFollower(log, self.ledger)
        self._log_status = LogStatus(log)
        self._policy_channel = open_channel(
            settings, settings.policy_target, service=POLICY_SERVICE, options=[_LARGEST_ANSWER]
        )
        self._policy = policy_pb2_grpc.PolicyServiceStub(self._policy_channel)
        self._fleets = {
            "policy": Fleet(settings, settings.policy_control_target),
            "critique": Fleet(settings, settings.critique_control_target),
        }
        self._started = time.monotonic()
        self._answering: set[str] = set()  # response ids whose answers run
        self.draining = False

    def start(self) -> None:
        if self.settings.follow_responses:
            self._follower.start()

    async def close(self) -> None:
        await asyncio.to_thread(self._follower.close)
        await asyncio.to_thread(self.feedback.close)
        for connected in (self._policy_channel, *self._fleets.values()):
            await connected.close()
        self.ledger.close()

    def admit(self, caller: Caller, role: Role) -> None:
        """Raises GatewayError: 503 draining, 403 without the role, 429 over its quota."""
        if self.draining:
            raise unavailable("this gateway is shutting down; another one takes the request")
        self.keys.require(caller, role)

    def pinned_version(self, model: str) -> str:
        """The version that a model name pins, "" for the serving one. Raises GatewayError (404)."""
        if model in ALIASES:
            return ""
        if model.startswith("policy-"):
            return model
        raise not_found(f"no model {model!r} is served; GET /v1/models lists them", "model_not_found", "model")

    async def prepare(self, request: policy_pb2.GenerateRequest, caller: Caller) -> policy_pb2.GenerateRequest:
        """The request as the policy service may see it: checked, media stored, principal set. Raises GatewayError."""
        stranger = unknown_fields(request)
        if stranger:
            raise invalid(f"unknown field {stranger}; this gateway speaks an older or another anyloop.v1", stranger)
        prepared = policy_pb2.GenerateRequest()
        prepared.CopyFrom(request)
        prepared.principal = caller.principal
        if (request.prompt_token_ids or request.tokens_only) and not caller.may(Role.OPERATE):
            raise GatewayError(
                Status.PERMISSION_DENIED, "token prompts need the role 'operate'; send messages", "missing_role"
            )
        if not request.messages and not request.prompt_token_ids:
            raise invalid("a request needs at least one message", "messages")
        for name in ("response_id", "conversation_id"):
            if getattr(request, name) and not NAME.fullmatch(getattr(request, name)):
                raise invalid(f"'{name}' is not an id: 1-128 letters, digits and _ . : -", name)
        if request.response_id and self._known(request.response_id):
            raise _taken()
        prepared.response_id = request.response_id or new_response_id(request.conversation_id)
        context.bind(response_id=prepared.response_id)
        carried = carried_conversation(prepared.response_id)
        if carried and request.conversation_id not in ("", carried):
            raise invalid(
                f"this response_id says that it belongs to conversation {carried!r}; leave it out and one is made",
                "response_id",
            )
        prepared.conversation_id = request.conversation_id or carried or prepared.response_id
        for index, message in enumerate(prepared.messages):
            if message.role == types_pb2.ROLE_UNSPECIFIED:
                raise invalid("a message needs a role", f"messages[{index}].role")
            if not message.parts:
                raise invalid("a message needs content", f"messages[{index}].content")
            parts = await self.media.resolve(list(message.parts), f"messages[{index}].content")
            del message.parts[:]
            message.parts.extend(parts)
        if prepared.ByteSize() > _PROMPT_BYTES:  # the policy service would answer this with "come back later"
            raise invalid(
                f"the prompt has {prepared.ByteSize()} bytes without its media, the limit is {_PROMPT_BYTES}: "
                "shorten the conversation",
                "messages",
                "context_length_exceeded",
            )
        return prepared

    @property
    def running(self) -> int:
        return len(self._answering)

    async def stream(
        self, prepared: policy_pb2.GenerateRequest, timeout_s: float | None = None, *, counted: bool = False
    ) -> AsyncGenerator[policy_pb2.GenerateResponse, None]:
        """The events of one answer. Closing the iterator cancels the request all the way down. Raises GatewayError: 429
        where the principal has as many answers running as it may (`counted`: the caller has seen to that), and what
        goes wrong on the way.

        Its tokens count to the principal's quota also when the client goes away before the end.
        """
        used = 0
        with contextlib.nullcontext() if counted else self.keys.running(prepared.principal):
            try:
                async with contextlib.aclosing(self._answer(prepared, timeout_s)) as events:
                    async for event in events:
                        used = tokens_used(event, used)
                        yield event
            finally:
                self.keys.charge_tokens(prepared.principal, used)

    async def _answer(
        self, prepared: policy_pb2.GenerateRequest, timeout_s: float | None
    ) -> AsyncGenerator[policy_pb2.GenerateResponse, None]:
        if prepared.response_id in self._answering:
            raise _taken()
        limit = self.settings.request_timeout_s
        seconds = min(limit, timeout_s) if timeout_s is not None else limit
        span = AnswerSpan(prepared)

        def ask(left: float, asked_before: int) -> Any:
            sent = (*span.metadata, *metadata_of(asked_before))
            return self._policy.Generate(prepared, timeout=left, metadata=sent)

        answer = answered(ask, seconds)
        self._answering.add(prepared.response_id)
        noted: asyncio.Task[None] | None = None  # the first token does not wait for the ledger, the end does
        try:
            async for event in answer:
                kind = event.WhichOneof("event")
                span.see(event)
                if kind == "started" and not prepared.unlogged:
                    noted = asyncio.create_task(
                        asyncio.to_thread(
                            self._note, prepared.response_id, prepared.conversation_id, prepared.principal
                        )
                    )
                elif kind == "finished" and noted is not None:
                    await noted
                yield event
        except grpc.aio.AioRpcError as error:
            span.fail(error)
            if error.code() in (Status.INTERNAL, Status.UNKNOWN, Status.DATA_LOSS):
                logger.error("policy service failed: %s", error.details(), extra={"response_id": prepared.response_id})
            raise from_rpc(error) from error
        finally:
            span.end()
            try:
                await answer.aclose()
                if noted is not None:
                    await asyncio.wait([noted])
            finally:  # the wait may be cancelled as well
                self._answering.discard(prepared.response_id)

    def _known(self, response_id: str) -> bool:
        try:
            return self.ledger.conversation_of(response_id) is not None
        except LedgerError as error:
            raise unavailable(f"{error}; try again, or leave response_id out") from error

    def _note(self, response_id: str, conversation_id: str, principal: str) -> None:
        try:
            self.ledger.add_responses([(response_id, conversation_id, principal)])
        except LedgerError as error:  # the follower finds it in the log; until then feedback on it counts as early
            logger.warning("an answer goes on although it cannot be noted: %s", error)

    async def submit_feedback(
        self, request: feedback_pb2.SubmitFeedbackRequest, caller: Caller
    ) -> feedback_pb2.SubmitFeedbackResponse:
        self.admit(caller, Role.FEEDBACK)
        return await self.feedback.submit(request, caller)

    async def models(self) -> list[str]:
        """What may stand in `model`: the serving one's name, then the versions resident in every policy replica."""
        return [MODEL_NAME, *everywhere(await self._fleets["policy"].replicas())]

    async def loop_status(self) -> dict[str, Any]:
        """The loop at a glance: what serves, what was promoted, how much the log holds."""
        policy, critique, log = await asyncio.gather(
            self._fleets["policy"].replicas(), self._fleets["critique"].replicas(), self._log_status.report()
        )
        return {
            "policy": described(policy),
            "critique": described(critique),
            **log,
            "outbox": {
                "bytes": self._outbox.pending_bytes,
                "oldest_seconds": round(self._outbox.oldest_seconds(), 1),
                "trouble": self._outbox.refuses() or self._outbox.log_trouble,
            },
            "gateway": {
                "requests_running": self.running,
                "draining": self.draining,
                "uptime_seconds": round(time.monotonic() - self._started, 1),
            },
        }

    async def problems(self) -> list[str]:
        """Why this gateway is not ready; empty when it is."""
        found = ["shutting down"] if self.draining else []
        if self._follower.failure:
            found.append(self._follower.failure)
        if self._outbox.failure is not None:
            found.append(f"the outbox no longer drains: {self._outbox.failure}")
        health = health_pb2_grpc.HealthStub(self._policy_channel)  # it reaches only replicas that say they serve
        try:
            asked = health_pb2.HealthCheckRequest(service=POLICY_SERVICE)
            reply = await health.Check(asked, timeout=_STATUS_TIMEOUT_S)
            if reply.status != health_pb2.HealthCheckResponse.SERVING:
                found.append(_NOBODY_SERVES)
        except grpc.aio.AioRpcError as error:
            away = error.code() is Status.UNAVAILABLE
            found.append(_NOBODY_SERVES if away else f"policy service: {error.code().name.lower()}")
        return found

    def degraded(self) -> list[str]:
        """What does not work as it should while requests are answered all the same. Asks nobody: it is at hand."""
        found = []
        waits = self._outbox.oldest_seconds()
        if self._outbox.log_trouble or waits > _SLOW_S:
            reason = self._outbox.log_trouble or f"the log has not taken the oldest for {waits:.0f} seconds"
            found.append(f"{self._outbox.pending_bytes} bytes of feedback wait on this machine: {reason}")
        if refused := self._outbox.refuses():
            found.append(f"feedback is refused: {refused}")
        if self._follower.trouble:
            found.append(self._follower.trouble)
        return found


def _taken() -> GatewayError:
    return GatewayError(
        Status.ALREADY_EXISTS, "this response_id is taken; leave it out and one is made", "response_id_taken"
    )
