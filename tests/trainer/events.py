"""Events as the services and the gateway log them, for tests of the trainer."""

from collections.abc import Sequence

from anyloop.sequence import Sequencer, Turn
from protos.anyloop.v1 import events_pb2, feedback_pb2, types_pb2


def response(
    name: str,
    prompt: Sequence[int] = (1, 2),
    output: Sequence[int] = (3, 4),
    *,
    conversation: str = "",
    created: int = 1000,
    version: str = "policy-000000",
    principal: str = "",
    attempt: int = 0,
) -> events_pb2.ResponseEvent:
    return events_pb2.ResponseEvent(
        response_id=name,
        principal=principal,
        attempt=attempt,
        conversation_id=conversation or name,
        prompt_token_ids=prompt,
        output_token_ids=output,
        output_logprobs=[-1.0] * len(output),
        version_spans=[types_pb2.VersionSpan(version=version, begin=0, end=len(output))],
        modalities=[types_pb2.MODALITY_TEXT],
        finish_reason=types_pb2.FINISH_REASON_STOP,
        created_unix_ms=created,
    )


def spoken(sequencer: Sequencer, name: str, ask: str, answer: str, **more: object) -> events_pb2.ResponseEvent:
    """A text response to a text prompt."""
    prompt = sequencer.prompt([Turn("user", (ask,))])
    return response(name, prompt, sequencer.answer([answer]), **more)  # type: ignore[arg-type]


def feedback(
    name: str,
    to: str = "",
    *,
    principal: str = "ada",
    key: str = "",
    created: int = 2000,
    **said: object,
) -> events_pb2.FeedbackEvent:
    return events_pb2.FeedbackEvent(
        feedback_id=name,
        principal=principal,
        idempotency_key=key,
        created_unix_ms=created,
        feedback=feedback_pb2.Feedback(response_id=to, **said),  # type: ignore[arg-type]
    )
