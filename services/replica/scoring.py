"""Score: log-probabilities of given outputs under resident weights, for the policy and the critique service."""

from contextlib import aclosing
from functools import partial

import grpc

from protos.anyloop.v1 import scoring_pb2
from services.hosts.interface import ModelHost
from services.replica.deadline import Deadline
from services.replica.inflight import InFlight, Send, relay
from services.replica.prompts import PromptBuilder


class Scores:
    """Answers the Score calls of one service; a drain waits for them as for answers."""

    def __init__(
        self, host: ModelHost, model: str, prompts: PromptBuilder, inflight: InFlight, longest_seconds: float
    ) -> None:
        self._host = host
        self._model = model
        self._prompts = prompts
        self._inflight = inflight
        self._longest_seconds = longest_seconds

    async def answer(
        self, request: scoring_pb2.ScoreRequest, context: grpc.aio.ServicerContext
    ) -> scoring_pb2.ScoreResponse:
        """Raises HostError, and RpcError."""
        deadline = Deadline.of(context, self._longest_seconds)
        async with aclosing(relay(context, self._inflight, partial(self._score, request, deadline))) as answers:
            return await anext(answers)

    async def _score(
        self, request: scoring_pb2.ScoreRequest, deadline: Deadline, send: Send[scoring_pb2.ScoreResponse]
    ) -> None:
        sequences = [
            {
                "prompt": list(one.prompt_token_ids),
                "output": list(one.output_token_ids),
                "modalities": [str(m) for m in self._prompts.answer_modalities(one.modalities)] or None,
                "max_tokens": one.max_tokens,
            }
            for one in request.sequences
        ]
        asked = {"op": "score", "sequences": sequences, "version": request.version, "grammar": request.grammar}
        answer = await self._host.call(self._model, asked, timeout=deadline.remaining())
        scores = [scoring_pb2.TokenScores(logprobs=values) for values in answer["logprobs"]]
        send(scoring_pb2.ScoreResponse(scores=scores, version=str(answer["version"])))
