"""A reward model that reads a critique before it judges (arXiv 2408.11791): prompt, answer, what the critique model says
of them, and a scalar at the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from anyloop.modality import Modality
from bench.engine_services import ServingEngine
from trainer.algorithms.reward_model import reward_scores
from trainer.algorithms.rollout import Score
from trainer.answer_model import ScalarModel
from trainer.batches import TokenSequence
from trainer.clients import SampleRequest
from trainer.examples import Pair
from trainer.optimisation import OptimConfig


def criticised(critic: ServingEngine, answers: Sequence[TokenSequence]) -> list[TokenSequence]:
    """Each answer's critique prompt with the critique."""
    sequencer = critic.sequencer
    prompts = [
        tuple(sequencer.critique_prompt(sequencer.parse_prompt(one.prompt), sequencer.parse(one.answer)))
        for one in answers
    ]
    said = critic.generate([SampleRequest(prompt, (Modality.TEXT,), 0.0, 96, seed=0) for prompt in prompts])
    return [TokenSequence(prompt, words.tokens) for prompt, words in zip(prompts, said, strict=True)]


@dataclass(frozen=True)
class ReadPair:
    sequences: tuple[TokenSequence, TokenSequence]
    weight: float


def critiqued_pairs(critic: ServingEngine, pairs: Sequence[Pair]) -> list[ReadPair]:
    read = criticised(critic, [sequence for pair in pairs for sequence in pair.sequences])
    return [ReadPair((read[2 * n], read[2 * n + 1]), pair.weight) for n, pair in enumerate(pairs)]


@dataclass(frozen=True)
class CritiquedReward:
    critic: ServingEngine
    checkpoint: Path
    tensors: dict[str, Tensor]
    value_start: None = None

    def open(self, optim: OptimConfig) -> Score:
        model = ScalarModel.load(self.checkpoint)
        model.load_state_dict(self.tensors)

        def score(answers: Sequence[TokenSequence]) -> list[float]:
            return reward_scores(model, criticised(self.critic, answers), optim.batch_tokens)

        return score
