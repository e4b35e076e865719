"""An evaluation suite of two prompts in each of two subtasks, for processes that tests start."""

from collections.abc import Sequence
from dataclasses import dataclass

from anyloop.media.store import MediaStore
from protos.anyloop.v1 import types_pb2


@dataclass(frozen=True)
class Question:
    id: str
    subtask: str
    messages: tuple[types_pb2.Message, ...] = (
        types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.ContentPart(text="Say it.")]),
    )
    modalities: tuple[int, ...] = (types_pb2.MODALITY_TEXT,)


@dataclass(frozen=True)
class Verdict:
    success: bool
    failed: tuple[str, ...] = ()


class Suite:
    """Right is an answer that has any words."""

    def prompts(self) -> Sequence[Question]:
        return [Question(f"{subtask}-{n}", subtask) for subtask in ("draw", "sing") for n in range(2)]

    def judge(self, prompt_id: str, message: types_pb2.Message, media: MediaStore) -> Verdict:
        return Verdict(any(part.text for part in message.parts))
