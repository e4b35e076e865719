"""Trainer and serving engine give the same tokens the same log-probabilities, in every modality.

The tolerance is 1e-4 nats per token, both in fp32; measured 2e-5 at most with tiny-omni, which is two orders of
summation. PPO and GRPO take importance ratios between the two: 1e-4 is a ratio of 1.0001 where it should be 1.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from anyloop.config import TINY_OMNI
from anyloop.modality import Modality
from anyloop.sequence import SequenceLayout, Turn
from bench.engine_services import Checkpoints, ServingEngine
from trainer.algorithms.actor import Answers, Watch, actor_pass
from trainer.algorithms.grpo import GRPOConfig, train_grpo
from trainer.algorithms.ppo import PPOConfig, train_ppo
from trainer.algorithms.rollout import Rollout, RolloutSource, Score
from trainer.answer_model import AnswerModel
from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.examples import Seed
from trainer.grammar_table import GrammarTable
from trainer.optimisation import OptimConfig
from trainer.prefix_proof import prove_sharing
from trainer.rollouts import as_rollout, rollout_requests, whole_answers
from trainer.shared_prefix import group_answers

TOLERANCE = 1e-4
ASKED = {
    "Draw two large red circles on the left.": (Modality.IMAGE,),
    "Play a low tone.": (Modality.AUDIO,),
    "Show a small blue square that moves right.": (Modality.VIDEO,),
    "What colour is the sky?": (Modality.TEXT,),
    "Draw and say what you drew.": (Modality.TEXT, Modality.IMAGE),
    "Anything you like.": (),
}


class EngineRollouts:
    """Answers of the in-process serving engine, from the weights that the trainer hands over."""

    def __init__(self, root: Path, settings: TrainerSettings) -> None:
        self.settings, self.engine, self.checkpoints = settings, ServingEngine(TINY_OMNI), Checkpoints(TINY_OMNI, root)
        self.engine.load("base", TINY_OMNI)
        encode = self.engine.sequencer.prompt
        prompts = {tuple(encode([Turn("user", (words,))])): modalities for words, modalities in ASKED.items()}
        self.seeds = [Seed("", prompt, (), modalities, None, "", 1.0) for prompt, modalities in prompts.items()]

    def __call__(self, turn: int, tensors: dict[str, Tensor] | None) -> list[Rollout]:
        version = "base"
        if tensors is not None:
            version = f"turn-{turn}"
            self.engine.load(version, self.checkpoints.write(version, tensors), serve=False)
        requests = rollout_requests(self.seeds, turn, self.settings, version)
        samples = self.engine.generate([request for _, request in requests])
        return [as_rollout(group, *one, self.settings) for group, *one in whole_answers(requests, samples)]


class AnyReward:
    """One that no two answers of a group are likely to share, so that there is something to learn."""

    value_start = None

    def open(self, optim: OptimConfig) -> Score:
        return lambda sequences: [float(sum(one.answer) % 7) for one in sequences]


@pytest.mark.parametrize("sharing", ["auto", "off"])
@pytest.mark.parametrize("max_tokens", [96, 24])
def test_the_trainer_computes_what_the_engine_logged(tmp_path: Path, max_tokens: int, sharing: str) -> None:
    settings = TrainerSettings(algorithm="grpo", grpo_prompts=6, grpo_group=4, max_answer_tokens=max_tokens)
    sampled = EngineRollouts(tmp_path, settings)(0, None)
    assert {rollout.group for rollout in sampled} == set(range(6))
    model = AnswerModel.load(TINY_OMNI)
    table = GrammarTable(SequenceLayout.load(TINY_OMNI), int(model.lm.config.vocab_size))
    watch = Watch()
    for group in group_answers([one.sequence for one in sampled], 4096, prove_sharing(model, sharing)):  # type: ignore[arg-type]
        answers = Answers.of(sampled, group, table)
        with torch.no_grad():
            found = actor_pass(model, answers)
        watch.add(found, answers, torch.ones_like(answers.logged), 0.2, 0.2, first=True)
    seen = watch.means()
    assert seen["mismatch_max"] < TOLERANCE
    assert 0 < seen["mismatch_mean"] < TOLERANCE / 10
    assert seen["ratio"] == pytest.approx(1, abs=TOLERANCE)


def train(algorithm: str, source: RolloutSource) -> dict[str, float]:
    start = (World(), TINY_OMNI, TINY_OMNI, AnyReward(), [])
    optim = OptimConfig(warmup=0.0)
    if algorithm == "grpo":
        return train_grpo(*start, GRPOConfig(lr=1e-3, iterations=2), optim, rollouts=source).metrics  # type: ignore[arg-type]
    ppo = PPOConfig(actor_lr=1e-3, iterations=2, rollouts=16, batch=16, epochs=1)
    return train_ppo(*start, ppo, optim, rollouts=source).metrics  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_new_weights_reach_the_engine_and_one_that_keeps_the_old_is_seen(tmp_path: Path, algorithm: str) -> None:
    settings = TrainerSettings(
        algorithm=algorithm,  # type: ignore[arg-type]
        grpo_prompts=4,
        grpo_group=4,
        ppo_rollouts=16,
        max_answer_tokens=40,
    )
    source = EngineRollouts(tmp_path, settings)
    fresh = train(algorithm, source)
    assert fresh[f"{algorithm}_mismatch_max_first"] < TOLERANCE
    assert fresh[f"{algorithm}_mismatch_max_last"] < TOLERANCE
    deaf = train(algorithm, lambda turn, tensors: source(turn, None))
    assert deaf[f"{algorithm}_mismatch_max_first"] < TOLERANCE
    assert deaf[f"{algorithm}_mismatch_max_last"] > 100 * TOLERANCE
