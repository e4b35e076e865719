"""A gateway that answers prompts of the reference world rightly, or wrongly where it is told to."""

import json
import threading
from collections.abc import Callable
from typing import Any

from anyloop.cli.demo.asking import File, content_of
from anyloop.cli.rest import GatewayClient, MediaPart, Reply, RequestFailed
from anyloop.world.tasks import Task
from tests.cli.demo.exchanges import right, wrong


class WorldGateway(GatewayClient):
    """`is_right(version, prompt, seed)` decides; a prompt that is no task's (its words with its media) is answered with
    `other`, one with `refuses` in it is refused. Keeps the bodies that it was asked with."""

    serving = "policy-000000"

    def __init__(
        self,
        tasks: list[Task],
        is_right: Callable[[str, str, int], bool] = lambda version, prompt, seed: True,
        other: str = "a red circle",
        refuses: str = "",
    ) -> None:
        super().__init__("http://unused")
        self.bodies: list[dict[str, Any]] = []
        self.refuses = refuses
        self.other = other
        self._tasks = {json.dumps(content_of(task)): task for task in tasks}
        self.is_right = is_right
        self._files: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def chat(self, content: Any, **options: Any) -> Reply:
        parts = options["messages"][-1]["content"]
        prompt, version = parts[-1]["text"], options["model"] or self.serving
        if self.refuses and self.refuses in prompt:
            raise RequestFailed(400, "the prompt is too long (HTTP 400)")
        files: tuple[File, ...] = ()
        words = self.other
        if task := self._tasks.get(json.dumps(parts)):
            made = (right if self.is_right(version, prompt, options["seed"]) else wrong)(task)
            files, words = made.files, made.reply.text
        with self._lock:
            self.bodies.append(options)
            self._files |= {f"/{id(file)}": file.data for file in files}
        media = tuple(MediaPart(file.modality, f"/{id(file)}", file.mime_type) for file in files)
        return Reply(f"id-{len(self.bodies)}", version, words, media, "stop", 9)

    def fetch(self, url: str) -> bytes:
        return self._files[url]
