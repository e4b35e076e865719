"""People who use the loop: they ask in every modality, look at what they got, and say how it should have been."""

import threading
import time
import traceback
import uuid
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np

from anyloop.cli.demo.asking import content_of
from anyloop.cli.rest import GatewayClient, RequestFailed, media_of
from anyloop.world import SUBTASKS, tasks
from tests.faults.audit import OK, Attempt

_PATIENCE_S = 30.0  # for feedback with a key, after the load has ended
_RETRY_S = 0.5
BROKEN = "broken stream"
_MEDIA = ("image_url", "audio_url", "video_url")


class Load:
    """`users` people, each with one request at a time and a pause of about `pace_s` between answers.

    Every answer gets feedback. Three in four pieces carry an idempotency key and are sent again until the gateway says
    yes; the others are sent once, whatever comes of it.
    """

    def __init__(self, url: str, *, users: int = 6, pace_s: float = 0.8, seed: int = 0) -> None:
        self._client = GatewayClient(url, timeout_s=30.0)
        self._pace_s = pace_s
        self._lock = threading.Lock()
        self._attempts: list[Attempt] = []
        self.broken: list[str] = []  # why a user went away before the end: an answer that nobody could make sense of
        self._ended = threading.Event()
        self._hurry = threading.Event()
        self._users = [
            threading.Thread(target=self._stay, args=(np.random.default_rng([seed, n]),), name=f"user-{n}", daemon=True)
            for n in range(users)
        ]

    def __enter__(self) -> Self:
        for user in self._users:
            user.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._hurry.set()
        self.stop()

    def stop(self) -> None:
        """Asks nothing more; returns when what is under way has ended and all keyed feedback has its yes."""
        self._ended.set()
        for user in self._users:
            user.join()

    @property
    def attempts(self) -> list[Attempt]:
        with self._lock:
            return list(self._attempts)

    def _stay(self, rng: np.random.Generator) -> None:
        try:
            self._live(rng)
        except Exception:
            with self._lock:
                self.broken.append(f"{threading.current_thread().name} went away: {traceback.format_exc().strip()}")

    def _live(self, rng: np.random.Generator) -> None:
        turn = int(rng.integers(len(SUBTASKS)))
        while not self._ended.wait(self._pace_s * rng.uniform(0.5, 1.5)):
            turn += 1
            task = tasks.sample(SUBTASKS[turn % len(SUBTASKS)], "train", rng)
            response_id, urls = self._ask(task, int(rng.integers(2**31)), stream=turn % 2 == 0)
            if not response_id:
                continue
            for url in urls:
                self._attempt("media", partial(self._fetch, url))
            self._say(response_id, keyed=turn % 4 != 0, read_back=turn % 8 == 1)

    def _ask(self, task: tasks.Task, seed: int, *, stream: bool) -> tuple[str, list[str]]:
        """The response id and the media of an answer that came whole; "" when it did not."""
        options: dict[str, Any] = {"modalities": [str(m) for m in task.modalities], "seed": seed}
        content, urls = content_of(task), []

        def streamed() -> str:
            response_id = finish = ""
            try:
                for chunk in self._client.chat_stream(content, max_completion_tokens=48, **options):
                    response_id = chunk["id"]
                    for choice in chunk["choices"]:
                        finish = choice["finish_reason"] or finish
                        parts = choice["delta"].get("content_parts") or []
                        urls.extend(media_of(part).url for part in parts if part["type"] in _MEDIA)
            except RequestFailed as error:
                if response_id:
                    status = BROKEN if error.status else status_of(error)
                    raise BrokenStream(response_id, status, str(error)) from error
                raise
            if not finish:
                raise BrokenStream(response_id, BROKEN, "the stream ended without a finish reason")
            return response_id

        def whole() -> str:
            reply = self._client.chat(content, max_completion_tokens=48, **options)
            urls.extend(part.url for part in reply.media)
            return reply.id

        return self._attempt("chat", streamed if stream else whole), urls

    def _say(self, response_id: str, *, keyed: bool, read_back: bool) -> None:
        statement: dict[str, Any] = {
            "response_id": response_id,
            "critique": "it should be said otherwise",
            "label": False,
            "refinement": f"as {response_id[-6:]} should have been",
        }
        key = uuid.uuid4().hex if keyed else ""
        if key:
            statement["idempotency_key"] = key
        deadline = None
        while True:
            feedback_id = self._attempt(
                "feedback", lambda: str(self._client.feedback(statement)["id"]), about=response_id, key=key
            )
            if feedback_id or not keyed:
                break
            if self._ended.is_set():
                deadline = deadline or time.monotonic() + _PATIENCE_S
            if self._hurry.is_set() or (deadline and time.monotonic() > deadline):
                return
            time.sleep(_RETRY_S)
        if feedback_id and read_back:
            self._attempt("lookup", partial(self._fetch, f"/v1/feedback/{feedback_id}"))

    def _fetch(self, url: str) -> str:
        self._client.fetch(url)
        return url

    def _attempt(self, kind: str, request: Callable[[], str], *, about: str = "", key: str = "") -> str:
        """The id that the request gave, "" when it failed; either way it is remembered."""
        begun, name, status, detail = time.time(), "", OK, ""
        try:
            name = request()
        except BrokenStream as error:
            name, status, detail = error.response_id, error.status, str(error)
        except RequestFailed as error:
            status, detail = status_of(error), str(error)
        with self._lock:
            self._attempts.append(Attempt(kind, begun, time.time(), status, name, detail, about, key))
        return name if status == OK else ""


class BrokenStream(Exception):
    """An answer that began and did not end."""

    def __init__(self, response_id: str, status: str, message: str) -> None:
        super().__init__(message)
        self.response_id, self.status = response_id, status


def status_of(error: RequestFailed) -> str:
    """The HTTP status, or what the connection did instead."""
    if error.status:
        return str(error.status)
    if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
        return "refused"
    return "timeout" if isinstance(error.__cause__, httpx.TimeoutException) else "cut"
