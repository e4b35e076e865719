"""Statements checked against the reference model, which has learned to criticise."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from anyloop.config import TINY_OMNI
from anyloop.sequence import Sequencer, Turn
from bench.engine_services import ServingEngine
from bench.hostile.annotators import Voice, statements, voices
from bench.hostile.world import VERSION, WorldPrompts, joined
from trainer.algorithms.feedback_modelling import FeedbackModellingConfig
from trainer.answer_model import AnswerModel, score_sequences
from trainer.batches import TokenSequence
from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.examples import Example, Pair, form_examples
from trainer.optimisation import OptimConfig
from trainer.robust import RobustConfig, doubts, judge_statements, metrics_of, smoothing, split, trust_of
from trainer.statements import Statement
from trainer.trained import Trained

LEARN, OPTIM = FeedbackModellingConfig(), OptimConfig()


@pytest.fixture(scope="module")
def module() -> AnswerModel:
    return AnswerModel.load(TINY_OMNI).eval()


@pytest.fixture(scope="module")
def claim() -> Callable[..., Statement]:
    """Somebody says `words` of "one large red circle" where a small one was asked for."""
    sequencer = Sequencer.from_pretrained(TINY_OMNI)

    def make(number: int, words: str, principal: str = "ada") -> Statement:
        asked = [Turn("user", ("There is one large red circle. Turn the size to small. What is there now?",))]
        prompt = tuple(sequencer.critique_prompt(asked, ["one large red circle"]))
        sequence = TokenSequence(prompt, tuple(sequencer.answer([words])))
        return Statement(f"f{number}", principal, f"r{number}", None, "words", (sequence,))

    return make


@pytest.fixture(scope="module")
def heard() -> tuple[list[Statement], list[Voice]]:
    """Critiques of the reference model's answers, a fifth of them by a ring of liars."""
    world, engine = WorldPrompts(TINY_OMNI), ServingEngine(TINY_OMNI)
    engine.load(VERSION, TINY_OMNI)
    answered = world.ask(engine, "train", 80, 5)
    speakers = voices(80, 0.2, "ring", np.random.default_rng(0))
    said = statements([(one.task, one.answer, one.judgement) for one in answered], speakers, 0)
    refused: Callable = pytest.fail
    found = form_examples(joined(answered, said), world.sequencer, TrainerSettings(), refused, [VERSION])
    return found.statements, speakers


def test_doubt_is_what_the_words_lose_against_the_likeliest_ones(
    module: AnswerModel, claim: Callable[..., Statement]
) -> None:
    honest, lie = claim(0, "The size should be small."), claim(1, "The colour should be blue.")
    found = doubts(module, [honest, lie], 4096)
    (sequence,) = lie.sequences
    with torch.no_grad():
        tokens = torch.tensor([sequence.prompt + sequence.answer])
        logits = module.lm(tokens).logits[0, len(sequence.prompt) - 1 : -1]
    by_hand = sum(float(row.max() - row[token]) for row, token in zip(logits, sequence.answer, strict=True))
    assert found[1] == pytest.approx(by_hand, abs=1e-3)
    assert found[1] > found[0]


def test_denials_and_preferences_are_doubted_by_what_is_right(
    module: AnswerModel, claim: Callable[..., Statement]
) -> None:
    likely = claim(0, "This is correct.").sequences[0]
    unlikely = claim(1, "This is correct. Blue.").sequences[0]
    chances = [float(row.sum()) for row in score_sequences(module, [likely, unlikely], 4096)]

    def one(kind: str, *sequences: TokenSequence) -> Statement:
        return Statement("f", "ada", "r", None, kind, sequences)  # type: ignore[arg-type]

    asked = [
        one("denial", likely),
        one("denial", unlikely),
        one("preference", likely, unlikely),
        one("preference", unlikely, likely),
    ]
    found = doubts(module, asked, 4096)
    p = torch.tensor(chances[0]).exp()
    assert found[0] == pytest.approx(max(0.0, float((p / (1 - p)).log())), abs=1e-3)
    assert found[1] == found[2] == 0.0
    assert found[3] == pytest.approx(chances[0] - chances[1], abs=1e-3)


@pytest.mark.parametrize("folds", [0, 2])
def test_liars_weigh_little_after_the_check(heard: tuple[list[Statement], list[Voice]], folds: int) -> None:
    said, speakers = heard
    found = judge_statements(World(), TINY_OMNI, said, RobustConfig(0.2, folds), LEARN, OPTIM)
    assert found is not None
    trust = trust_of(said, found)
    lies = {f"f{n}" for n, voice in enumerate(speakers) if voice.lies}
    assert len(lies) == 16
    assert sum(trust[name] for name in lies) < 4
    assert sum(weight for name, weight in trust.items() if name not in lies) > 54  # of 64
    seen = metrics_of(said, found)
    assert seen["robust_principals_distrusted"] >= 3  # the ring
    assert (seen["robust_statements"], seen["robust_trimmed"] <= 16) == (80, True)


def test_a_fold_with_nothing_to_learn_is_not_asked_of_a_model_that_knows_it(
    claim: Callable[..., Statement], module: AnswerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one principal writes: the fold with the others learns the words, and the words' own fold learns nothing."""
    words = [claim(n, "This is correct.", "writer") for n in range(16)]
    silent = [Statement(f"d{n}", f"p{n % 4}", f"d{n}", False, "denial", words[0].sequences) for n in range(16)]
    said = words + silent
    served = {name: tensor.clone() for name, tensor in module.lm.state_dict().items()}
    name = "model.norm.weight"
    lessons: list[int] = []

    def learn(world: World, checkpoint: Path, learned: list[Example], *rest: object) -> Trained:
        lessons.append(len(learned))
        return Trained({key: one + 1.0 for key, one in served.items()}, {})

    asked: list[tuple[bool, set[str]]] = []

    def doubt(model: AnswerModel, some: list[Statement], batch_tokens: int) -> list[float]:
        taught = not torch.equal(model.lm.state_dict()[name], served[name])
        asked.append((taught, {one.kind for one in some}))
        return [0.0] * len(some)

    monkeypatch.setattr("trainer.robust.train_critic", learn)
    monkeypatch.setattr("trainer.robust.doubts", doubt)
    monkeypatch.setattr("trainer.robust.split", lambda some, count: [int(one.kind == "words") for one in some])
    assert judge_statements(World(), TINY_OMNI, said, RobustConfig(0.3, 2), LEARN, OPTIM) is not None
    assert lessons == [16]
    assert asked[1:] == [(True, {"denial"}), (False, {"words"})]


def test_too_few_statements_and_no_stated_share_believe_everybody(claim: Callable[..., Statement]) -> None:
    few = [claim(n, "This is correct.") for n in range(5)]
    assert judge_statements(World(), TINY_OMNI, few, RobustConfig(0.3), LEARN, OPTIM) is None
    many = [claim(n, "This is correct.") for n in range(30)]
    assert judge_statements(World(), TINY_OMNI, many, RobustConfig(0.0), LEARN, OPTIM) is None


def test_principals_are_not_torn_apart_by_the_folds_unless_they_are_too_few(claim: Callable[..., Statement]) -> None:
    statements = [claim(n, "x", f"p{n % 6}") for n in range(60)]
    folds = split(statements, 2)
    assert {(one.principal, fold) for one, fold in zip(statements, folds, strict=True)} == {
        (f"p{n}", folds[n]) for n in range(6)
    }
    assert folds.count(0) == folds.count(1) == 30
    alone = split([claim(n, "x", "ada") for n in range(60)], 2)
    assert 15 < sum(alone) < 45


def test_smoothing_is_the_expected_residual_of_what_rests_on_people() -> None:
    people, machine = [Pair((1,), (2,), (3,), "self-improving", "r", 1.0, voices) for voices in (("ada",), ())]
    trust = {"a": 1.0, "b": 0.5, "c": 0.0}  # of 1.5 believed, 0.25 may be wrong
    assert smoothing(trust, [people], 0.0) == pytest.approx(1 / 6)
    assert smoothing(trust, [people, machine], 0.0) == pytest.approx(1 / 12)
    assert smoothing(trust, [machine], 0.0) == 0.0
    assert smoothing({}, [people], 0.1) == 0.1
    assert smoothing({"a": 0.0}, [], 0.0) == 0.0
