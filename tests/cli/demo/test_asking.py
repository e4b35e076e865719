import threading
from typing import Any

import numpy as np
import pytest

from anyloop.cli.demo.asking import Exchange, ask, ask_all, content_of
from anyloop.cli.demo.evaluation import questions
from anyloop.cli.rest import GatewayClient, MediaPart, Reply, RequestFailed
from anyloop.media.fit import fit_for_codec
from anyloop.modality import Modality
from anyloop.world import SUBTASKS, tasks
from tests.cli.demo.exchanges import right, wrong


class FakeGateway(GatewayClient):
    """Answers every prompt of the world rightly, with files served by URL; notes what was asked."""

    def __init__(self, asked: list[tasks.Task]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._by_prompt = {task.prompt: task for task in asked}
        self._files: dict[str, bytes] = {}
        self._running = 0
        self._lock = threading.Lock()

    def chat(self, content: Any, **options: Any) -> Reply:
        with self._lock:
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
            self.bodies.append(options)
        made = right(self._by_prompt[content[-1]["text"]])
        with self._lock:
            self._running -= 1
            self._files |= {f"/{id(file)}": file.data for file in made.files}
        media = tuple(MediaPart(file.modality, f"/{id(file)}", file.mime_type) for file in made.files)
        return Reply(f"id-{len(self.bodies)}", "policy-000000", made.reply.text, media, "stop", 9)

    def fetch(self, url: str) -> bytes:
        return self._files[url]


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_a_right_answer_is_judged_right_after_its_way_through_files(subtask: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(4):
        task = tasks.sample(subtask, "heldout", rng)
        assert right(task).judgement.ok
        assert not wrong(task).judgement.ok


def test_media_of_the_prompt_are_sent_as_files_that_show_the_same() -> None:
    task = tasks.sample("TI2T", "train", np.random.default_rng(0))
    image, text = content_of(task)
    assert text == {"type": "text", "text": task.prompt}
    data = GatewayClient("http://unused").fetch(image["image_url"]["url"])
    received = fit_for_codec(data, Modality.IMAGE, (64, 64, 3))
    assert np.abs(received * 255 - task.media[0][1]).max() < 1


def test_what_is_not_to_be_stored_says_so_and_the_rest_does_not() -> None:
    task = tasks.sample("T2T", "train", np.random.default_rng(0))
    gateway = FakeGateway([task])
    ask(gateway, task, 5, store=False)
    ask(gateway, task, 5, store=True)
    assert gateway.bodies == [
        {"modalities": ["text"], "seed": 5, "store": False},
        {"modalities": ["text"], "seed": 5},
    ]


def test_answers_stand_in_the_order_of_the_questions() -> None:
    asked = questions("train", 2, seed=1)
    gateway = FakeGateway([task for task, _ in asked])
    seen: list[Exchange] = []
    exchanges = ask_all(gateway, asked, store=True, concurrency=4, on_answer=seen.append)
    assert [exchange.task for exchange in exchanges] == [task for task, _ in asked]
    assert len(seen) == len(asked)
    assert gateway.most_at_once <= 4


def test_the_first_failure_ends_the_whole_measurement() -> None:
    class Broken(FakeGateway):
        def chat(self, content: Any, **options: Any) -> Reply:
            raise RequestFailed(503, "draining")

    asked = questions("train", 1, seed=1)
    with pytest.raises(RequestFailed, match="draining"):
        ask_all(Broken([]), asked, store=True)


def test_the_same_seed_asks_the_same_questions_and_splits_share_none() -> None:
    first, again, other = questions("heldout", 3, 0), questions("heldout", 3, 0), questions("train", 3, 0)
    assert [(task.prompt, seed) for task, seed in first] == [(task.prompt, seed) for task, seed in again]
    assert {task.scene.split for task, _ in first} == {"heldout"}
    assert {task.scene.split for task, _ in other} == {"train"}
    assert [task.subtask for task, _ in first] == list(SUBTASKS) * 3
