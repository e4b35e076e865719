import pytest

from anyloop.cli.demo.asking import File
from anyloop.cli.demo.evaluation import questions
from anyloop.cli.eval.asking import Question, pose_all, world_turn
from anyloop.cli.rest import RequestFailed
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
