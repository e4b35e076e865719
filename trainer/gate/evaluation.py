"""One version on the suite: answers pinned to it, unlogged, judged on their media."""

import asyncio
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from anyloop.media.store import MediaNotFound, MediaStore, to_proto
from protos.anyloop.v1 import policy_pb2, types_pb2
from trainer.clients import ServiceError, Services
from trainer.gate.config import GateSettings
from trainer.gate.suite import EvalPrompt, Suite

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """`successes[i]` is the share of right answers to prompt `i` of the suite; `failed` counts what was wrong."""

    version: str
    prompts: list[str]
    subtasks: list[str]
    successes: list[float]
    unanswered: int
    failed: dict[str, int]


def stored_messages(prompt: EvalPrompt, media: MediaStore) -> list[types_pb2.Message]:
    """The prompt's messages with inline media put into the store and named by reference, as behind the gateway."""
    messages = []
    for message in prompt.messages:
        copy = types_pb2.Message(role=message.role)
        for part in message.parts:
            added = copy.parts.add()
            added.CopyFrom(part)
            if part.WhichOneof("part") == "inline_media":
                stored = media.put(part.inline_media.data, part.inline_media.mime_type)
                added.media.CopyFrom(to_proto(stored))
        messages.append(copy)
    return messages


async def evaluate(
    services: Services, suite: Suite, media: MediaStore, version: str, settings: GateSettings
) -> Evaluation:
    """Asks every prompt `samples` times; the same prompt has the same seed for every version.

    Raises ServiceError when a service stays away. A prompt that is refused counts as unanswered and as a failure.
    """
    prompts = list(suite.prompts())
    failed: Counter[str] = Counter()
    unanswered = 0

    async def ask(number: int, prompt: EvalPrompt, messages: Sequence[types_pb2.Message]) -> float:
        nonlocal unanswered
        right = 0
        for sample in range(settings.samples):
            request = policy_pb2.GenerateRequest(
                messages=messages,
                modalities=list(prompt.modalities),
                policy_version=version,
                unlogged=True,
                sampling=types_pb2.SamplingParams(
                    temperature=settings.temperature,
                    top_p=1.0,
                    top_k=0,
                    max_tokens=settings.max_tokens,
                    seed=(settings.seed * 1_000_003 + number) * 101 + sample,
                ),
            )
            try:
                answer = await services.generate(request)
                verdict = await asyncio.to_thread(suite.judge, prompt.id, answer, media)
            except ServiceError as error:
                if error.retriable:
                    raise
                log.warning("%s did not answer %s: %s", version, prompt.id, error)
                unanswered += 1
                continue
            except MediaNotFound as error:
                log.warning("the answer of %s to %s names media that are not stored: %s", version, prompt.id, error)
                unanswered += 1
                continue
            right += verdict.success
            failed.update(f"{prompt.subtask}: {name}" for name in verdict.failed)
        return right / settings.samples

    tasks = [
        asyncio.ensure_future(ask(number, prompt, stored_messages(prompt, media)))
        for number, prompt in enumerate(prompts)
    ]
    try:
        successes = list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    names = [prompt.id for prompt in prompts]
    subtasks = [prompt.subtask for prompt in prompts]
    return Evaluation(version, names, subtasks, successes, unanswered, dict(failed.most_common()))


class EvaluationCache:
    """Evaluations by version and settings: the serving version was a candidate once and need not be asked again."""

    def __init__(self, folder: Path, suite: str, prompts: Sequence[str], settings: GateSettings) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        same = {"samples", "temperature", "max_tokens", "seed"}
        self._key = json.dumps([suite, list(prompts), settings.model_dump(include=same)], sort_keys=True)

    def get(self, version: str) -> Evaluation | None:
        try:
            data = json.loads((self._folder / f"{version}.json").read_text())
        except (OSError, ValueError):
            return None
        return Evaluation(**data["evaluation"]) if data.get("key") == self._key else None

    def put(self, evaluation: Evaluation) -> None:
        path = self._folder / f"{evaluation.version}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"key": self._key, "evaluation": asdict(evaluation)}))
        os.replace(temporary, path)
