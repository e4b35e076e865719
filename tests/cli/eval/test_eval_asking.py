from typing import Any

import pytest

from anyloop.cli.demo.asking import File
from anyloop.cli.demo.evaluation import questions
from anyloop.cli.eval.asking import Question, pose_all, seed_of, world_turn
from anyloop.cli.rest import Reply, RequestFailed
from anyloop.modality import Modality
from tests.cli.eval.gateway import WorldGateway

ASKED = questions("heldout", 1, 0)
POSED = [
    Question(task.subtask, task.subtask, world_turn(task.prompt, task.media), task.modalities, seed)
    for task, seed in ASKED
]


def test_nothing_is_stored_and_every_option_reaches_the_gateway() -> None:
    gateway = WorldGateway([task for task, _ in ASKED])
    pose_all(gateway, POSED[:1], version="policy-000007", temperature=0.5)
    (body,) = gateway.bodies
    assert body["store"] is False
    assert (body["model"], body["temperature"], body["seed"]) == ("policy-000007", 0.5, ASKED[0][1])
    assert body["modalities"] == ["text"]
    assert body["messages"][0]["role"] == "user"


def test_the_serving_version_and_its_own_defaults_are_asked_unless_told() -> None:
    gateway = WorldGateway([task for task, _ in ASKED])
    pose_all(gateway, [Question("open", "open", (("user", ("Hello.",)),))])
    (body,) = gateway.bodies
    assert (body["model"], body["temperature"], body["modalities"]) == (None, None, None)


def test_samples_of_a_prompt_have_seeds_of_their_own_and_stand_together() -> None:
    gateway = WorldGateway([task for task, _ in ASKED])
    answers = pose_all(gateway, POSED, samples=3)
    assert [[one.question.name for one in given] for given in answers] == [[q.name] * 3 for q in POSED]
    seeds = {body["seed"] for body in gateway.bodies}
    assert len(seeds) == 3 * len(POSED)
    assert {seed for _, seed in ASKED} <= seeds, "the first sample is what one sample would be"


def test_neighbouring_seeds_share_no_answers() -> None:
    hundred = [seed_of(seed, "prompt", sample) for seed in range(10) for sample in range(10)]
    assert len(set(hundred)) == 100
    assert all(0 <= one < 2**31 for one in hundred)
    asked: list[set[int]] = []
    for seed in (5, 5 + 1_000_003):  # what lies as far apart as two samples once did
        gateway = WorldGateway([])
        pose_all(gateway, [Question("open", "open", (("user", ("Hello.",)),), seed=seed)], samples=3)
        asked.append({body["seed"] for body in gateway.bodies})
    assert len(asked[0] | asked[1]) == 6


class Busy(WorldGateway):
    """Refuses so many requests before each answer."""

    def __init__(self, refusals: int, status: int, retry_after_s: float | None) -> None:
        super().__init__([])
        self.left = refusals
        self._refusal = RequestFailed(status, "try again", retry_after_s)

    def chat(self, content: Any, **options: Any) -> Reply:
        if self.left:
            self.left -= 1
            raise self._refusal
        return super().chat(content, **options)


HELLO = Question("open", "open", (("user", ("Hello.",)),))


@pytest.mark.parametrize(("status", "after", "waits"), [(429, 7.0, [7.0, 7.0]), (503, None, [0.5, 1.0])])
def test_a_busy_gateway_is_asked_again_after_as_long_as_it_says(
    monkeypatch: pytest.MonkeyPatch, status: int, after: float | None, waits: list[float]
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("anyloop.cli.eval.asking.time.sleep", slept.append)
    ((one,),) = pose_all(Busy(2, status, after), [HELLO])
    assert one.reply.text == "a red circle"
    assert slept == waits


@pytest.mark.parametrize(("status", "tries"), [(503, 5), (400, 1)])
def test_a_gateway_that_stays_busy_ends_it_and_a_refusal_does_so_at_once(
    monkeypatch: pytest.MonkeyPatch, status: int, tries: int
) -> None:
    monkeypatch.setattr("anyloop.cli.eval.asking.time.sleep", lambda seconds: None)
    gateway = Busy(100, status, 1.0)
    with pytest.raises(RequestFailed, match="open: try again"):
        pose_all(gateway, [HELLO])
    assert 100 - gateway.left == tries


def test_media_travel_both_ways() -> None:
    gateway = WorldGateway([task for task, _ in ASKED])
    answers = {one.question.name: one for (one,) in pose_all(gateway, POSED)}
    assert [file.modality for file in answers["TV2T"].question.files] == [Modality.VIDEO]
    image = answers["TI2TI"]
    assert [file.modality for file in image.files] == [Modality.IMAGE]
    assert image.parts == (*image.files, image.reply.text)
    assert image.answer.image is not None
    assert answers["T2I"].parts == answers["T2I"].files, "words of nothing are no part"


def test_a_refusal_names_the_question() -> None:
    gateway = WorldGateway([], refuses="Hello")
    with pytest.raises(RequestFailed, match="line 4: the prompt is too long") as refused:
        pose_all(
            gateway, [Question("line 4", "prompts", (("user", (File(Modality.IMAGE, "image/png", b"x"), "Hello.")),))]
        )
    assert refused.value.status == 400
