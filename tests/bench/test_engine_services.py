"""The engine without services answers as the trainer expects of them."""

import asyncio

import pytest

from anyloop.config import TINY_OMNI
from anyloop.modality import Modality
from anyloop.sequence import Turn
from bench.engine_services import Checkpoints, EngineServices, ServingEngine
from trainer.answer_model import AnswerModel
from trainer.clients import SampleRequest
from trainer.trained import lm_tensors


@pytest.fixture(scope="module")
def engine() -> ServingEngine:
    engine = ServingEngine(TINY_OMNI, slots=8)
    engine.load("base", TINY_OMNI)
    return engine


def request(
    engine: ServingEngine, seed: int = 0, text: str = "Draw two large red circles on the left."
) -> SampleRequest:
    prompt = engine.sequencer.prompt([Turn("user", (text,))])
    return SampleRequest(tuple(prompt), (Modality.IMAGE,), 1.0, 96, seed=seed)


def test_answers_do_not_depend_on_who_else_asks(engine: ServingEngine) -> None:
    alone = engine.generate([request(engine, 3)])
    together = engine.generate([request(engine, seed) for seed in range(12)])
    assert together[3].tokens == alone[0].tokens
    assert len({sample.tokens for sample in together}) > 1
    assert all(sample.finished and sample.version == "base" for sample in together)


def test_scores_repeat_the_logged_logprobs(engine: ServingEngine) -> None:
    asked = [request(engine, seed) for seed in range(3)]
    samples = engine.generate(asked)
    scores = engine.score([(one, sample.tokens) for one, sample in zip(asked, samples, strict=True)])
    for sample, scored in zip(samples, scores, strict=True):
        assert scored == pytest.approx(sample.logprobs, abs=1e-4)


def test_services_answer_concurrent_requests_together(engine: ServingEngine) -> None:
    services = EngineServices(engine, engine)

    async def ask() -> list[object]:
        samples = [services.sample(request(engine, seed)) for seed in range(4)]
        critique = services.critique(request(engine, text="Anything"))
        return list(await asyncio.gather(*samples, critique))

    *samples, critique = asyncio.run(ask())
    assert [sample.tokens for sample in samples] == [
        sample.tokens for sample in engine.generate([request(engine, seed) for seed in range(4)])
    ]
    assert isinstance(critique, str)


def test_a_refused_request_fails_for_all_who_asked_with_it(engine: ServingEngine) -> None:
    services = EngineServices(engine, engine)

    async def ask() -> None:
        await asyncio.gather(services.sample(SampleRequest((1,) * 600)))

    with pytest.raises(Exception, match="prompt"):
        asyncio.run(ask())


def test_written_weights_are_served_under_their_name(engine: ServingEngine, tmp_path) -> None:
    tensors = lm_tensors(AnswerModel.load(TINY_OMNI).state_dict())
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 0.5
    folder = Checkpoints(TINY_OMNI, tmp_path).write("half", tensors)
    engine.load("half", folder, serve=False)
    pinned = SampleRequest(**{**vars(request(engine, 1)), "version": "half"})
    assert engine.generate([pinned])[0].version == "half"
    assert engine.generate([pinned])[0].logprobs != engine.generate([request(engine, 1)])[0].logprobs
    engine.unload("half")
