"""The gate's evaluation suite over the reference world: prompts on gate combinations, judged exactly.

The gate process loads it by name (`ANYLOOP_GATE_SUITE=anyloop.world.suite:gate_suite`), so that neither the gate nor
the learner depends on this world. A deployment brings a suite of its own with the same two methods.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anyloop.media.formats import read_audio, read_image, read_video, write_audio, write_image, write_video
from anyloop.media.store import MediaStore
from anyloop.modality import Modality
from anyloop.world import tasks
from anyloop.world.render.clip import FPS
from anyloop.world.render.sound import RATE
from anyloop.world.scenes import Split
from anyloop.world.tasks import SUBTASKS, Answer, Task
from protos.anyloop.v1 import types_pb2

_PROTO = {
    Modality.TEXT: types_pb2.MODALITY_TEXT,
    Modality.IMAGE: types_pb2.MODALITY_IMAGE,
    Modality.AUDIO: types_pb2.MODALITY_AUDIO,
    Modality.VIDEO: types_pb2.MODALITY_VIDEO,
}
_WRITE: dict[Modality, tuple[str, Callable[[np.ndarray], bytes]]] = {
    Modality.IMAGE: ("image/png", write_image),
    Modality.AUDIO: ("audio/wav", lambda samples: write_audio(samples, RATE)),
    Modality.VIDEO: ("video/mp4", lambda frames: write_video(frames, FPS)),
}


@dataclass(frozen=True)
class EvalPrompt:
    """One prompt of the suite. Input media travel inline; the gate stores them before it asks."""

    id: str
    subtask: str
    messages: tuple[types_pb2.Message, ...]
    modalities: tuple[int, ...]  # protos.anyloop.v1.Modality values


@dataclass(frozen=True)
class Verdict:
    success: bool
    failed: tuple[str, ...]  # "part dimension", for example "image colour"


def file_of(modality: Modality, media: np.ndarray) -> tuple[str, bytes]:
    """(MIME type, file bytes) of a world medium."""
    mime_type, write = _WRITE[modality]
    return mime_type, write(media)


def read_answer(message: types_pb2.Message, media: MediaStore) -> Answer:
    """A served answer as words and arrays, read back from the stored files."""
    text, found = "", {}
    for part in message.parts:
        if part.WhichOneof("part") == "text":
            text += part.text
            continue
        data = media.get(part.media.sha256)
        if part.media.modality == types_pb2.MODALITY_IMAGE:
            found["image"] = read_image(data)
        elif part.media.modality == types_pb2.MODALITY_AUDIO:
            found["audio"] = read_audio(data)[0]
        elif part.media.modality == types_pb2.MODALITY_VIDEO:
            found["video"] = read_video(data)[0]
    return Answer(text=text, **found)


class WorldSuite:
    """`per_subtask` prompts of each subtask, the same for every candidate."""

    def __init__(self, split: Split, per_subtask: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._tasks = {
            f"{subtask}-{at}": tasks.sample(subtask, split, rng) for subtask in SUBTASKS for at in range(per_subtask)
        }

    def prompts(self) -> list[EvalPrompt]:
        return [self._prompt(name, task) for name, task in self._tasks.items()]

    def judge(self, prompt_id: str, message: types_pb2.Message, media: MediaStore) -> Verdict:
        """Judges an answer on its decoded media. Raises KeyError on an unknown prompt id."""
        judgement = tasks.judge(self._tasks[prompt_id], read_answer(message, media))
        return Verdict(judgement.ok, tuple(f"{fault.part} {fault.dimension}" for fault in judgement.failed))

    def _prompt(self, name: str, task: Task) -> EvalPrompt:
        parts = []
        for modality, array in task.media:
            mime_type, data = file_of(modality, array)
            inline = types_pb2.InlineMedia(mime_type=mime_type, data=data)
            parts.append(types_pb2.ContentPart(inline_media=inline))
        parts.append(types_pb2.ContentPart(text=task.prompt))
        message = types_pb2.Message(role=types_pb2.ROLE_USER, parts=parts)
        return EvalPrompt(name, task.subtask, (message,), tuple(_PROTO[m] for m in task.modalities))


def gate_suite(per_subtask: int = 30, seed: int = 20251) -> WorldSuite:
    """The suite of the gate: combinations that neither training nor the held-out evaluation uses."""
    return WorldSuite("gate", per_subtask, seed)
