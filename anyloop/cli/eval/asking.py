"""Questions of an evaluation to REST requests, unlogged, and answers back as files and arrays."""

import functools
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from anyloop.cli.demo.asking import File, answer_of, at_once, file_of
from anyloop.cli.rest import GatewayClient, Reply, RequestFailed, media_part, text_part
from anyloop.evaluation.critic import Part, Turn
from anyloop.modality import Modality
from anyloop.world.tasks import Answer, Media

Got = TypeVar("Got")
CONCURRENCY = 12
_ATTEMPTS = 5
_BUSY = (429, 503)  # too many requests, and a replica that is being swapped or started
_LONGEST_WAIT_S = 60.0


@dataclass(frozen=True)
class Question:
    """One prompt. `name` is unique; `group` is what it counts to; no `modalities`: the model chooses."""

    name: str
    group: str
    turns: tuple[Turn, ...]
    modalities: tuple[Modality, ...] = ()
    seed: int = 0

    @property
    def words(self) -> str:
        """The text of the last turn, for people."""
        return " ".join(part for part in self.turns[-1][1] if isinstance(part, str))

    @property
    def files(self) -> tuple[File, ...]:
        return tuple(part for _, parts in self.turns for part in parts if isinstance(part, File))


@dataclass(frozen=True)
class Answered:
    """One answer of several to a question."""

    question: Question
    reply: Reply
    files: tuple[File, ...]

    @functools.cached_property
    def answer(self) -> Answer:
        """As the reference world's judges measure it."""
        return answer_of(self.reply.text, self.files)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*self.files, self.reply.text) if self.reply.text.strip() else self.files


def world_turn(words: str, media: Sequence[tuple[Modality, Media]]) -> tuple[Turn, ...]:
    """A user turn of the reference world: its media first, then its words."""
    files = [File(modality, mime, data) for modality, array in media for data, mime in [file_of(modality, array)]]
    return (("user", (*files, words)),)


def seed_of(*parts: int | str) -> int:
    """A sampling seed of its own for these: evaluations with other seeds share none."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 2**31


def pose_all(
    client: GatewayClient,
    questions: Sequence[Question],
    *,
    samples: int = 1,
    version: str = "",
    temperature: float | None = None,
    on_answer: Callable[[Answered], None] = lambda answered: None,
) -> list[list[Answered]]:
    """`samples` answers to each question, in the order of the questions, with the same seeds whoever answers.

    A gateway that is busy (429, 503) is asked again a few times, after as long as its Retry-After says. Raises
    RequestFailed, naming the question, when one is not answered: a score over fewer would flatter.
    """

    def pose(one: tuple[Question, int]) -> Answered:
        question, sample = one
        options: dict[str, Any] = {
            "messages": [_message(role, parts) for role, parts in question.turns],
            "modalities": [str(modality) for modality in question.modalities] or None,
            "seed": seed_of(question.seed, sample) if sample else question.seed,
            "temperature": temperature,
            "model": version or None,
            "store": False,
        }
        try:
            reply = _patiently(lambda: client.chat([], **options))
            files = tuple(
                File(part.modality, part.mime_type, _patiently(functools.partial(client.fetch, part.url)))
                for part in reply.media
            )
        except RequestFailed as error:
            raise RequestFailed(error.status, f"{question.name}: {error}") from error
        return Answered(question, reply, files)

    asked = [(question, sample) for question in questions for sample in range(samples)]
    answers = at_once(pose, asked, CONCURRENCY, on_answer)
    return [answers[at : at + samples] for at in range(0, len(answers), samples)]


def _patiently(request: Callable[[], Got]) -> Got:
    """The result of a request that a busy gateway may refuse for a while."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return request()
        except RequestFailed as error:
            if error.status not in _BUSY:
                raise
            wait = 0.5 * 2**attempt if error.retry_after_s is None else error.retry_after_s
            time.sleep(min(wait, _LONGEST_WAIT_S))
    return request()


def _message(role: str, parts: Sequence[Part]) -> dict[str, Any]:
    content = []
    for part in parts:
        if isinstance(part, str):
            content.append(text_part(part))
        else:
            assert isinstance(part, File)
            content.append(media_part(part.modality, part.data, part.mime_type))
    return {"role": role, "content": content}
