"""A policy service that plays parts: what it answers is chosen by the last words of the prompt."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import numpy as np

from anyloop.media.formats import write_audio, write_image, write_video
from anyloop.media.store import MediaStore, to_proto
from protos.anyloop.v1 import control_pb2, control_pb2_grpc, policy_pb2, policy_pb2_grpc, types_pb2
from services.rpc.attempt import attempt_of

VERSION = "policy-000003"
PROMPT_TOKENS = 7
RED = write_image(np.full((8, 8, 3), (255, 0, 0), np.uint8))
TONE = write_audio(np.sin(np.arange(6144) * 0.3).astype(np.float32), 8000)
CLIP = write_video(np.zeros((8, 64, 64, 3), np.uint8), 8)
FILES = {
    types_pb2.MODALITY_IMAGE: (RED, "image/png"),
    types_pb2.MODALITY_AUDIO: (TONE, "audio/wav"),
    types_pb2.MODALITY_VIDEO: (CLIP, "video/mp4"),
}
Response = policy_pb2.GenerateResponse


class FakePolicy(policy_pb2_grpc.PolicyServiceServicer):
    def __init__(self, store: MediaStore) -> None:
        self.store = store
        self.requests: list[policy_pb2.GenerateRequest] = []
        self.attempts: list[int] = []
        self.asked = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def Generate(
        self, request: policy_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[policy_pb2.GenerateResponse]:
        self.requests.append(request)
        self.attempts.append(attempt_of(context))
        self.asked.set()
        said = "".join(part.text for part in request.messages[-1].parts) if request.messages else ""
        if said == "busy":
            trailers = (("grpc-retry-pushback-ms", "3000"),)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full; try again", trailers)
        if said == "too long":
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "the prompt has 900 tokens, the limit is 384; shorten it"
            )
        if said == "drained":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        if said == "secret crash":
            await context.abort(grpc.StatusCode.INTERNAL, "Traceback: the secret path")
        yield Response(
            started=Response.Started(
                response_id=request.response_id,
                policy_version=request.policy_version or VERSION,
                prompt_tokens=PROMPT_TOKENS,
            )
        )
        if said == "forever":
            try:
                while True:
                    yield Response(text=Response.TextDelta(text="on "))
                    await asyncio.sleep(0.02)
            finally:
                self.cancelled.set()
        if said == "silence":
            try:
                await asyncio.sleep(60)
            finally:
                self.cancelled.set()
        text = f"you said {said}"
        if said == "break off":
            yield Response(text=Response.TextDelta(text="so far"))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the model died")
        wanted = list(request.modalities) or [types_pb2.MODALITY_TEXT]
        tokens = 0
        if types_pb2.MODALITY_TEXT in wanted:
            for token, word in enumerate(text.split(" ")):
                piece = word if token == 0 else f" {word}"
                tokens += 1
                if said == "slowly":
                    await asyncio.sleep(0.2)
                delta = Response.TextDelta(text=piece, token_ids=[token], logprobs=[-0.5])
                if request.sampling.top_logprobs:
                    ids = range(token, token + request.sampling.top_logprobs)
                    delta.top_logprobs.add(token_ids=ids, logprobs=[-0.5 - at for at in range(len(ids))])
                yield Response(text=delta)
        for modality in wanted:
            if modality in FILES:
                media = to_proto(self.store.put(*FILES[modality]))
                tokens += 18
                yield Response(media=Response.MediaPart(media=media, modality=modality))
        yield Response(
            finished=Response.Finished(
                finish_reason=types_pb2.FINISH_REASON_LENGTH if said == "cut" else types_pb2.FINISH_REASON_STOP,
                usage=types_pb2.Usage(prompt_tokens=PROMPT_TOKENS, completion_tokens=tokens),
            )
        )


class FakeControl(control_pb2_grpc.ControlServiceServicer):
    async def GetStatus(
        self, request: control_pb2.GetStatusRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.ReplicaStatus:
        weights = [control_pb2.WeightsInfo(version=VERSION, digest="d" * 64, serving=True)]
        return control_pb2.ReplicaStatus(model_name="policy", serving_version=VERSION, weights=weights)
