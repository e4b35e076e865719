"""Policy, critique, decoder and control services over real gRPC, with scripted answers instead of a model.

The base policy answers "red square"; a refine prompt, or any other policy version, gets "blue circle", which is what
the critique service calls right.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from anyloop.config import Settings
from anyloop.log import EventLog
from anyloop.registry import CheckpointError, Registry, serving_version
from anyloop.sequence import Sequencer
from protos.anyloop.v1 import (
    control_pb2,
    control_pb2_grpc,
    critique_pb2,
    critique_pb2_grpc,
    decoder_pb2,
    decoder_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    scoring_pb2,
    types_pb2,
)

BASE = "policy-000000"
GOOD, BAD = "blue circle", "red square"


class FakeServices(
    policy_pb2_grpc.PolicyServiceServicer,
    critique_pb2_grpc.CritiqueServiceServicer,
    decoder_pb2_grpc.DecoderServiceServicer,
):
    """`unavailable` calls fail first with UNAVAILABLE, to be tried again."""

    def __init__(self, sequencer: Sequencer, log: EventLog, registry: Registry) -> None:
        self.sequencer, self.log, self.registry = sequencer, log, registry
        self.resident: set[str] = {BASE}
        self.generated: list[policy_pb2.GenerateRequest] = []
        self.running, self.most_running = 0, 0
        self.unavailable = 0
        self.refuse_staging = ""
        self.score_shift = 0.0  # between what is logged and what Score says
        self.scored: list[scoring_pb2.ScoreRequest] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.port = 0

    def __enter__(self) -> "FakeServices":
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def settings(self, home: Path, checkpoint: Path) -> Settings:
        target = f"127.0.0.1:{self.port}"
        return Settings(
            home=home,
            model_dir=checkpoint,
            policy_target=target,
            critique_target=target,
            decoder_target=target,
            policy_control_target=target,
            critique_control_target=f"127.0.0.1:{self.critique_port}",
        )

    async def Generate(
        self, request: policy_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[policy_pb2.GenerateResponse]:
        if self.unavailable:
            self.unavailable -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        self.generated.append(request)
        version = request.policy_version or BASE
        if version not in self.resident:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{version} is not resident")
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0.005)
        self.running -= 1
        turns = self.sequencer.parse_prompt(list(request.prompt_token_ids)) if request.prompt_token_ids else []
        text = GOOD if len(turns) > 1 or version != BASE else BAD
        tokens = self.sequencer.answer([text])
        yield policy_pb2.GenerateResponse(started=policy_pb2.GenerateResponse.Started(policy_version=version))
        yield policy_pb2.GenerateResponse(
            finished=policy_pb2.GenerateResponse.Finished(
                finish_reason=types_pb2.FINISH_REASON_STOP,
                output_token_ids=tokens,
                output_logprobs=[-2.0] * len(tokens),
                version_spans=[types_pb2.VersionSpan(version=version, begin=0, end=len(tokens))],
                message=types_pb2.Message(parts=[types_pb2.ContentPart(text=text)]),
            )
        )

    async def Score(
        self, request: scoring_pb2.ScoreRequest, context: grpc.aio.ServicerContext
    ) -> scoring_pb2.ScoreResponse:
        self.scored.append(request)
        scores = [
            scoring_pb2.TokenScores(logprobs=[-2.0 - self.score_shift] * len(one.output_token_ids))
            for one in request.sequences
        ]
        return scoring_pb2.ScoreResponse(scores=scores, version=request.version)

    async def Critique(
        self, request: critique_pb2.CritiqueRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[critique_pb2.CritiqueResponse]:
        (turn,) = self.sequencer.parse_prompt(list(request.prompt_token_ids))
        right = GOOD in "".join(part for part in turn.segments if isinstance(part, str))
        words = "This is correct." if right else "It should be a blue circle."
        yield critique_pb2.CritiqueResponse(finished=critique_pb2.CritiqueResponse.Finished(critique=words))

    async def Encode(
        self, request: decoder_pb2.EncodeRequest, context: grpc.aio.ServicerContext
    ) -> decoder_pb2.EncodeResponse:
        return decoder_pb2.EncodeResponse(codes=[1] * 16)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        main, other = grpc.aio.server(), grpc.aio.server()
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self, main)
        critique_pb2_grpc.add_CritiqueServiceServicer_to_server(self, main)
        decoder_pb2_grpc.add_DecoderServiceServicer_to_server(self, main)
        control_pb2_grpc.add_ControlServiceServicer_to_server(FakeControl(self, "policy"), main)
        control_pb2_grpc.add_ControlServiceServicer_to_server(FakeControl(self, "critique"), other)
        self.port = main.add_insecure_port("127.0.0.1:0")
        self.critique_port = other.add_insecure_port("127.0.0.1:0")
        await main.start()
        await other.start()
        self._ready.set()
        await self._stop.wait()
        await main.stop(None)
        await other.stop(None)


class FakeControl(control_pb2_grpc.ControlServiceServicer):
    def __init__(self, services: FakeServices, lineage: str) -> None:
        self._services, self._lineage = services, lineage

    async def GetStatus(
        self, request: control_pb2.GetStatusRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.ReplicaStatus:
        version = serving_version(self._services.log, self._lineage) or f"{self._lineage}-000000"
        resident = self._services.resident if self._lineage == "policy" else set()
        return control_pb2.ReplicaStatus(
            serving_version=version, weights=[control_pb2.WeightsInfo(version=one) for one in resident]
        )

    async def LoadWeights(
        self, request: control_pb2.LoadWeightsRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.WeightsInfo:
        if self._services.refuse_staging:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, self._services.refuse_staging)
        try:
            manifest = self._services.registry.verify(request.version)
        except CheckpointError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        self._services.resident.add(request.version)
        return control_pb2.WeightsInfo(version=request.version, digest=manifest.weights_digest)

    async def UnloadWeights(
        self, request: control_pb2.UnloadWeightsRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.UnloadWeightsResponse:
        self._services.resident.discard(request.version)
        return control_pb2.UnloadWeightsResponse()
