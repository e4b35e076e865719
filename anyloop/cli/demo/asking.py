"""Tasks of the reference world to REST requests, and answers back to arrays that its judges measure."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from anyloop.cli.rest import GatewayClient, Reply, media_part, text_part
from anyloop.media.fit import fit_for_codec, render
from anyloop.modality import Modality
from anyloop.world import tasks
from anyloop.world.tasks import Answer, Judgement, Task

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")
# What the judges take; files that people see are larger (pixels) or the same (samples).
SHAPES = {Modality.IMAGE: (64, 64, 3), Modality.AUDIO: (6144,), Modality.VIDEO: (8, 64, 64, 3)}
RATES = {Modality.IMAGE: 0.0, Modality.AUDIO: 8000.0, Modality.VIDEO: 8.0}


@dataclass(frozen=True)
class File:
    """A medium as it came over the wire."""

    modality: Modality
    mime_type: str
    data: bytes


@dataclass(frozen=True)
class Exchange:
    """One prompt, its answer as a person gets it, and what the judge measures in it."""

    task: Task
    seed: int
    reply: Reply
    files: tuple[File, ...]
    answer: Answer
    judgement: Judgement


def content_of(task: Task) -> list[dict[str, Any]]:
    """The user turn of a task: its media first, then its words."""
    parts = []
    for modality, array in task.media:
        data, mime_type = file_of(modality, array)
        parts.append(media_part(modality, data, mime_type))
    return [*parts, text_part(task.prompt)]


def file_of(modality: Modality, array: np.ndarray) -> tuple[bytes, str]:
    """An array of the world as a file, and its MIME type."""
    floats = array.astype(np.float32) if modality is Modality.AUDIO else array.astype(np.float32) / 255.0
    return render(floats, modality, RATES[modality])


def ask(client: GatewayClient, task: Task, seed: int, *, store: bool) -> Exchange:
    """One request and its media. `store=False` keeps it out of the log, so that nothing can learn from it.

    Raises RequestFailed, and MediaError when the answer's file is broken.
    """
    options: dict[str, Any] = {"modalities": [str(modality) for modality in task.modalities], "seed": seed}
    if not store:
        options["store"] = False
    reply = client.chat(content_of(task), **options)
    files = tuple(File(part.modality, part.mime_type, client.fetch(part.url)) for part in reply.media)
    answer = answer_of(reply.text, files)
    return Exchange(task, seed, reply, files, answer, tasks.judge(task, answer))


def answer_of(text: str, files: Sequence[File]) -> Answer:
    """The first medium of each kind, measured from its file."""
    arrays: dict[str, np.ndarray] = {}
    for file in files:
        if str(file.modality) not in arrays:
            floats = fit_for_codec(file.data, file.modality, SHAPES[file.modality], RATES[file.modality])
            whole = floats if file.modality is Modality.AUDIO else np.round(floats * 255).astype(np.uint8)
            arrays[str(file.modality)] = whole
    return Answer(text=text, **arrays)


def ask_all(
    client: GatewayClient,
    questions: Sequence[tuple[Task, int]],
    *,
    store: bool,
    concurrency: int = 12,
    on_answer: Callable[[Exchange], None] = lambda exchange: None,
) -> list[Exchange]:
    """Asks `(task, seed)` concurrently; answers stand in the order of the questions. The first failure is raised."""
    return at_once(lambda one: ask(client, *one, store=store), questions, concurrency, on_answer)


def at_once(
    function: Callable[[Asked], Answered], items: Sequence[Asked], concurrency: int, on_done: Callable[[Answered], None]
) -> list[Answered]:
    """`function` of every item, `concurrency` at a time, in the order of the items. The first failure is raised."""
    done: dict[int, Answered] = {}
    with ThreadPoolExecutor(concurrency, thread_name_prefix="ask") as pool:
        futures = {pool.submit(function, item): n for n, item in enumerate(items)}
        try:
            for future in as_completed(futures):
                done[futures[future]] = future.result()
                on_done(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [done[n] for n in range(len(items))]
