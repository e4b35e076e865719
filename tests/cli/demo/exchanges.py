"""Prompts of the world with answers made for them, as they come back over REST."""

import numpy as np

from anyloop.cli.demo.asking import Exchange, File, answer_of, file_of
from anyloop.cli.rest import Reply
from anyloop.modality import Modality
from anyloop.world import tasks
from anyloop.world.scenes import Scene
from anyloop.world.tasks import Task


def exchange(task: Task, shown: Scene, version: str) -> Exchange:
    """An answer to `task` that says and shows `shown`, through the same files as over REST."""
    answer = tasks.answer_with(task, shown, shown, np.random.default_rng(0))
    media = [modality for modality in task.modalities if modality is not Modality.TEXT]
    files = tuple(File(m, mime_type, data) for m in media for data, mime_type in [file_of(m, answer.medium(m))])
    received = answer_of(answer.text, files)
    reply = Reply(f"chatcmpl-{version}", version, answer.text, (), "stop", 20)
    return Exchange(task, 1, reply, files, received, tasks.judge(task, received))


def right(task: Task, version: str = "policy-000001") -> Exchange:
    return exchange(task, task.scene, version)


def wrong(task: Task, version: str = "policy-000000") -> Exchange:
    scene = task.scene
    other = next(one for one in type(scene).every() if one != scene)
    return exchange(task, other, version)
