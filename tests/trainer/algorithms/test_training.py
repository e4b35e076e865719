"""Each algorithm on a toy where the right outcome is known. The model is tiny and random; seconds each."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from anyloop.modality import Modality
from anyloop.sequence import Sequencer, Turn
from trainer.algorithms.dpo import DPOConfig, train_dpo
from trainer.algorithms.feedback_modelling import FeedbackModellingConfig, mix, split_held_out, train_critic
from trainer.algorithms.grpo import GRPOConfig, train_grpo
from trainer.algorithms.ppo import PPOConfig, train_ppo
from trainer.algorithms.reward_model import RewardConfig, train_reward_model, with_critique
from trainer.algorithms.rollout import Rollout, Score
from trainer.answer_model import AnswerModel, score_sequences, token_logprobs
from trainer.batches import TokenSequence, collate
from trainer.clients import ServiceError
from trainer.distributed import World
from trainer.engine import Engine, open_engine
from trainer.examples import Example, Pair
from trainer.grammar_table import GrammarTable
from trainer.optimisation import OptimConfig
from trainer.trained import Trained

WORDS = ("red", "blue", "small", "large")


def asked(sequencer: Sequencer, text: str) -> tuple[int, ...]:
    return tuple(sequencer.prompt([Turn("user", (text,))]))


def said(sequencer: Sequencer, text: str) -> tuple[int, ...]:
    return tuple(sequencer.answer([text]))


def toy_pairs(sequencer: Sequencer) -> list[Pair]:
    return [
        Pair(asked(sequencer, f"Draw {i}."), said(sequencer, "circle"), said(sequencer, "square"), "preference", str(i))
        for i in range(12)
    ]


def reloaded(checkpoint: Path, tensors: dict[str, Tensor]) -> AnswerModel:
    model = AnswerModel.load(checkpoint)
    model.lm.load_state_dict(tensors)
    return model


def test_dpo_raises_the_margin_of_every_pair(checkpoint: Path, sequencer: Sequencer) -> None:
    config = DPOConfig(lr=1e-3, epochs=3, batch=4, sft_coefficient=0.0)
    pairs = toy_pairs(sequencer)
    trained = train_dpo(World(), checkpoint, checkpoint, pairs, [], config, OptimConfig())
    sequences = [sequence for pair in pairs for sequence in pair.sequences]
    before = [float(row.sum()) for row in score_sequences(AnswerModel.load(checkpoint), sequences, 4096)]
    after = [float(row.sum()) for row in score_sequences(reloaded(checkpoint, trained.tensors), sequences, 4096)]
    change = [new - old for new, old in zip(after, before, strict=True)]
    assert all(chosen > rejected for chosen, rejected in zip(change[0::2], change[1::2], strict=True))
    assert trained.metrics["dpo_loss_first"] == pytest.approx(0.693147, abs=1e-4)
    assert trained.metrics["dpo_loss_last"] < 0.5
    assert trained.metrics["dpo_accuracy_last"] == 1.0


def test_dpo_on_many_small_batches_equals_one_large_batch(checkpoint: Path, sequencer: Sequencer) -> None:
    imitations = [Example(pair.sequences[0], pair.source) for pair in toy_pairs(sequencer)[:5]]
    config = DPOConfig(lr=1e-3, batch=6, sft_coefficient=0.5)
    results = [
        train_dpo(
            World(), checkpoint, checkpoint, toy_pairs(sequencer), imitations, config, OptimConfig(batch_tokens=tokens)
        )
        for tokens in (64, 4096)
    ]
    for name in results[0].tensors:
        torch.testing.assert_close(results[0].tensors[name], results[1].tensors[name], atol=1e-4, rtol=0)


def test_the_liked_term_keeps_chosen_answers_likely(checkpoint: Path, sequencer: Sequencer) -> None:
    changes = []
    for coefficient in (0.0, 1.0):
        config = DPOConfig(lr=1e-3, epochs=2, batch=4, sft_coefficient=coefficient)
        trained = train_dpo(World(), checkpoint, checkpoint, toy_pairs(sequencer), [], config, OptimConfig())
        changes.append(trained.metrics["chosen_logprob_change"])
    assert changes[1] > changes[0]


def test_the_critique_model_learns_critiques_it_was_not_trained_on(checkpoint: Path, sequencer: Sequencer) -> None:
    def example(i: int) -> Example:
        turns = [Turn("user", (f"Draw {i} {WORDS[i % 4]}.",))]
        prompt = tuple(sequencer.critique_prompt(turns, ["a circle"]))
        return Example(TokenSequence(prompt, said(sequencer, f"It should be {WORDS[i % 4]}.")), f"r{i}")

    learn, held_out = split_held_out([example(i) for i in range(40)], 0.25)
    config = FeedbackModellingConfig(lr=5e-3, epochs=6, batch=4)
    trained = train_critic(World(), checkpoint, learn, held_out, config, OptimConfig())
    assert trained.metrics["critique_loss_after"] < 0.7 * trained.metrics["critique_loss_before"]
    assert trained.metrics["critique_held_out"] == len(held_out) > 3


def test_a_critique_model_that_only_gets_worse_stays_as_it_was(checkpoint: Path, sequencer: Sequencer) -> None:
    prompt = asked(sequencer, "Draw.")
    learn = [Example(TokenSequence(prompt, said(sequencer, "wrong wrong")), "a")] * 8
    held_out = [Example(TokenSequence(prompt, said(sequencer, "Quite another thing 123")), "b")]
    config = FeedbackModellingConfig(lr=1.0, epochs=3, batch=4)
    trained = train_critic(World(), checkpoint, learn, held_out, config, OptimConfig(warmup=0.0))
    assert trained.metrics["critique_epochs"] == 0
    assert trained.metrics["critique_loss_after"] == trained.metrics["critique_loss_before"]
    original = AnswerModel.load(checkpoint).lm.state_dict()
    assert all(torch.equal(trained.tensors[name], original[name]) for name in original)


def test_an_answer_is_held_out_in_every_round_or_never() -> None:
    examples = [Example(TokenSequence((1,), (2,)), f"r{i}") for i in range(200)]
    learn, held_out = split_held_out(examples, 0.1)
    again, _ = split_held_out(list(reversed(examples)), 0.1)
    assert {one.source for one in learn} == {one.source for one in again}
    assert 8 <= len(held_out) <= 35


def test_the_mix_holds_every_new_critique_and_the_configured_shares() -> None:
    def some(name: str, count: int) -> list[Example]:
        return [Example(TokenSequence((1,), (2,)), f"{name}{i}") for i in range(count)]

    config = FeedbackModellingConfig(replay=0.5, anchor=0.25)
    mixed = mix(some("new", 20), some("old", 100), some("anchor", 3), config, seed=0)
    names = [one.source.rstrip("0123456789") for one in mixed]
    assert (names.count("new"), names.count("old"), names.count("anchor")) == (20, 10, 3)


def test_the_reward_model_scores_chosen_above_rejected(checkpoint: Path, sequencer: Sequencer) -> None:
    pairs = toy_pairs(sequencer)
    config = RewardConfig(lr=3e-3, epochs=4, batch=6, view="answer")
    reward = train_reward_model(World(), checkpoint, pairs, config, OptimConfig())
    assert reward.metrics["reward_accuracy"] == 1.0
    good, bad = reward.open(OptimConfig())(pairs[0].sequences)
    assert good > bad


class Bandit:
    """Samples one-token answers as the serving engine would: under the grammar, with logged log-probabilities."""

    def __init__(self, checkpoint: Path, sequencer: Sequencer) -> None:
        self.checkpoint, self.sequencer = checkpoint, sequencer
        self.prompt = asked(sequencer, "Pick.")
        self.arms = sequencer.encode_text("a")[0], sequencer.encode_text("b")[0]
        self.chances: list[float] = []

    def __call__(self, turn: int, tensors: dict[str, Tensor] | None) -> list[Rollout]:
        model = reloaded(self.checkpoint, tensors) if tensors else AnswerModel.load(self.checkpoint)
        ids = torch.tensor([self.prompt])
        with torch.no_grad():
            logits = model(ids, torch.tensor([len(self.prompt) - 1]))[0]
        width = len(logits)
        table = GrammarTable(self.sequencer.layout, width)
        allowed = table.masks(table.rows((self.arms[0],), (Modality.TEXT,)))[0]
        logprobs = torch.log_softmax(logits.masked_fill(~allowed, float("-inf")), -1)
        self.chances.append(float(logprobs[list(self.arms)].exp()[0]))
        generator = torch.Generator().manual_seed(turn)
        drawn = torch.multinomial(logprobs.exp(), 64, replacement=True, generator=generator).tolist()
        return [Rollout(self.prompt, (token,), (float(logprobs[token]),), (Modality.TEXT,)) for token in drawn]


class EarlyTokensPay:
    """A reward of 1 for answers that begin with one of the first 160 tokens: about half of the text tokens."""

    value_start = None

    def open(self, optim: OptimConfig) -> Score:
        return lambda sequences: [float(one.answer[0] < 160) for one in sequences]


@pytest.mark.parametrize("critic", ["own", "shared"])
def test_ppo_makes_the_rewarded_arm_of_a_bandit_likely(
    checkpoint: Path, sequencer: Sequencer, critic: Literal["own", "shared"]
) -> None:
    config = PPOConfig(
        iterations=5, rollouts=64, batch=32, epochs=3, actor_lr=1e-2, critic_lr=1e-2, kl=0.0, critic=critic
    )
    trained = train_ppo(
        World(),
        checkpoint,
        checkpoint,
        EarlyTokensPay(),
        [],
        config,
        OptimConfig(),
        rollouts=Bandit(checkpoint, sequencer),
    )
    assert trained.metrics["ppo_reward_last"] > trained.metrics["ppo_reward_first"] + 0.25
    assert trained.metrics["ppo_ratio_first_first"] == pytest.approx(1.0, abs=1e-4)  # logged and recomputed agree
    assert trained.metrics["ppo_mismatch_max_last"] < 1e-4  # the new weights do reach the engine
    assert trained.metrics["ppo_turns"] == 5
    assert trained.tensors.keys() == AnswerModel.load(checkpoint).lm.state_dict().keys()


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_a_first_turn_without_answers_is_an_error_and_a_later_one_is_counted(
    checkpoint: Path, sequencer: Sequencer, name: str
) -> None:
    """Nothing sampled means nothing learned: the parent's weights must not be published as new ones."""
    bandit = Bandit(checkpoint, sequencer)

    def train(answered: set[int]) -> Trained:
        def rollouts(turn: int, weights: dict[str, Tensor] | None) -> list[Rollout]:
            return bandit(turn, weights)[:4] if turn in answered else []

        begin = (World(), checkpoint, checkpoint, EarlyTokensPay(), [])
        if name == "ppo":
            return train_ppo(*begin, PPOConfig(iterations=3), OptimConfig(), rollouts=rollouts)
        return train_grpo(*begin, GRPOConfig(iterations=3), OptimConfig(), rollouts=rollouts)

    with pytest.raises(ServiceError, match="no sampled answer") as raised:
        train({1, 2})
    assert raised.value.retriable
    trained = train({0, 2})
    assert (trained.metrics[f"{name}_turns"], trained.metrics[f"{name}_empty_turns"]) == (2, 1)


def test_ppos_rates_are_planned_for_the_answers_there_will_be(
    checkpoint: Path, sequencer: Sequencer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bandit, seen = Bandit(checkpoint, sequencer), []

    def opened(module: torch.nn.Module, lr: float, steps: int, *rest: object) -> Engine:
        seen.append(steps)
        return open_engine(module, lr, steps, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("trainer.algorithms.ppo.open_engine", opened)
    config = PPOConfig(iterations=2, rollouts=64, batch=4, epochs=2)
    for planned in ([6, 5], None):
        train_ppo(
            World(),
            checkpoint,
            checkpoint,
            EarlyTokensPay(),
            [],
            config,
            OptimConfig(),
            planned=planned,
            rollouts=lambda turn, weights: bandit(turn, weights)[: 6 - turn],
        )
    assert seen == [8, 8, 64, 64]  # actor and critic: 2 epochs of 2 steps in each of 2 turns; else 16 steps


def test_grpo_makes_the_rewarded_arm_of_a_bandit_likely(checkpoint: Path, sequencer: Sequencer) -> None:
    config = GRPOConfig(iterations=5, epochs=2, lr=1e-2, kl=0.01)
    trained = train_grpo(
        World(),
        checkpoint,
        checkpoint,
        EarlyTokensPay(),
        [],
        config,
        OptimConfig(),
        rollouts=Bandit(checkpoint, sequencer),
    )
    assert trained.metrics["grpo_reward_last"] > trained.metrics["grpo_reward_first"] + 0.25
    assert trained.metrics["grpo_mismatch_max_last"] < 1e-4  # the new weights do reach the engine
    assert trained.metrics["grpo_undecided_first"] == 0
    assert trained.metrics["grpo_kl_last"] > 0


def test_a_reward_model_may_read_what_the_critique_model_says(checkpoint: Path, sequencer: Sequencer) -> None:
    pairs = toy_pairs(sequencer)
    words = "The shape should be a circle."
    views = [
        (with_critique(sequencer, good, "This is correct."), with_critique(sequencer, bad, words))
        for good, bad in (pair.sequences for pair in pairs)
    ]
    asked = sequencer.critique_prompt([Turn("user", ("Draw 0.",))], ["circle"])
    assert list(views[0][0].prompt) == asked
    assert views[0][0].answer == tuple(sequencer.answer(["This is correct."]))
    config = RewardConfig(lr=3e-3, epochs=4, batch=6, view="critique")
    reward = train_reward_model(World(), checkpoint, pairs, config, OptimConfig(), views=views)
    assert reward.metrics["reward_accuracy"] == 1.0
    assert reward.value_start is None  # a value function over prompt and answer does not begin from it
    good, bad = reward.open(OptimConfig())(views[0])
    assert good > bad
    # What it has learned is in the words, not in the answer: the critiques exchanged, so are the scores.
    swapped = [with_critique(sequencer, pairs[0].sequences[0], words)]
    assert reward.open(OptimConfig())(swapped)[0] < good


def test_a_reward_model_of_critiques_wants_to_be_given_them(checkpoint: Path, sequencer: Sequencer) -> None:
    with pytest.raises(ValueError, match="view critique reads more than the pairs"):
        train_reward_model(World(), checkpoint, toy_pairs(sequencer), RewardConfig(), OptimConfig())


def test_an_answer_without_a_critique_is_read_with_an_empty_one(sequencer: Sequencer) -> None:
    sequence = toy_pairs(sequencer)[0].sequences[0]
    assert with_critique(sequencer, sequence, "").answer == (sequencer.layout.end,)


def test_grammar_masks_reproduce_the_engines_distribution(checkpoint: Path, sequencer: Sequencer) -> None:
    model = AnswerModel.load(checkpoint)
    answer = tuple(sequencer.answer(["hi"]))
    table = GrammarTable(sequencer.layout, model.lm.config.vocab_size)
    masks = table.masks(table.rows(answer, (Modality.TEXT,)))
    batch = collate([TokenSequence(asked(sequencer, "Hello."), answer)])
    free, masked = token_logprobs(model, batch), token_logprobs(model, batch, masks)
    assert bool((masked > free).all())  # less competition
    assert not bool(masks[:, sequencer.layout.codes[Modality.IMAGE].open].any())
