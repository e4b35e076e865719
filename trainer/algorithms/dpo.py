"""Direct preference optimisation (arXiv 2305.18290) on a round's pairs.

Log-probabilities are summed over the answer tokens; the reference's are computed once per pair, before the first step.
Chosen and rejected answers share one pass over their prompt where the model allows it (`trainer.shared_prefix`).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.algorithms.losses import dpo_loss, dpo_margin
from trainer.algorithms.supervised import answer_tokens, sft_micro_losses, typical_weight
from trainer.answer_model import AnswerModel, score_sequences, token_logprobs
from trainer.batches import TokenSequence, shuffled_steps, steps_in
from trainer.checkpointing import Notes, SavePoint, fingerprint, training_steps
from trainer.distributed import World
from trainer.engine import Engine, closes_engines, open_engine
from trainer.examples import Example, Pair
from trainer.forward_pass import set_precision
from trainer.optimisation import OptimConfig
from trainer.prefix_proof import prove_sharing
from trainer.shared_prefix import Group, Sharing, group_pairs
from trainer.trained import Trained, lm_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DPOConfig:
    """The settings with the prefix `dpo_`."""

    lr: float = 2e-4
    beta: float = 0.1  # how strongly a pair's margin counts against leaving the reference
    epochs: int = 2
    batch: int = 8  # pairs per optimiser step
    label_smoothing: float = 0.0  # assumed share of pairs the wrong way round
    reference_free: bool = False  # no reference: the margin is of the policy's own log-probabilities
    length_normalised: bool = False  # log-probabilities per token instead of summed; beta then wants to be larger
    sft_coefficient: float = 1.0  # weight of the likelihood of chosen answers beside DPO


WATCHED = 64  # about so many pairs tell how far the policy went
Scored = tuple[Pair, float, float]  # a pair with the reference's summed log-probabilities of chosen and rejected


@closes_engines
def train_dpo(
    world: World,
    checkpoint: Path,
    reference: Path,
    pairs: list[Pair],
    imitations: list[Example],
    config: DPOConfig,
    optim: OptimConfig,
    saving: SavePoint | None = None,
) -> Trained:
    """Continues `checkpoint` on `pairs`, held close to `reference`. `imitations` enter through the SFT coefficient."""
    module = AnswerModel.load(checkpoint)
    anchor = module if reference == checkpoint else AnswerModel.load(reference)
    sharing = prove_sharing(module, optim.shared_prefix)
    # Before anything is scored, or the margins would begin with the difference of two precisions.
    module, anchor = set_precision(module, optim), set_precision(anchor, optim)
    watched = pairs[:: max(1, len(pairs) // WATCHED)]
    if config.reference_free:
        scored = [(pair, 0.0, 0.0) for pair in pairs]
        before = reference_scores(anchor, watched, optim.batch_tokens, sharing)
    else:
        scored = reference_scores(anchor, pairs, optim.batch_tokens, sharing)
        before = scored[:: max(1, len(pairs) // WATCHED)]
    del anchor
    total = steps_in(len(pairs), config.batch, config.epochs)
    engine = open_engine(module, config.lr, total, optim, world)
    typical = typical_weight([pair.weight for pair in pairs])
    notes = Notes({"history": []})
    inputs = fingerprint("dpo", checkpoint, reference, pairs, imitations, config, optim)
    steps = shuffled_steps(len(scored), config.batch, config.epochs, optim.seed)
    for number, step in training_steps({"policy": engine}, steps, world, saving, inputs, notes):
        extra = imitations[number % total :: total] if config.sft_coefficient else []
        seen = dpo_step(engine, [scored[i] for i in step], extra, config, optim, world, sharing, typical)
        notes.facts["history"].append(seen)
        if number % 5 == 0 or number + 1 == total:
            log.info("dpo step %d of %d: %s", number + 1, total, _rounded(seen))
    history: list[dict[str, float]] = notes.facts["history"]
    metrics: dict[str, Any] = {"pairs": len(pairs), "dpo_steps": len(history)}
    for name in history[0] if history else ():
        metrics[f"dpo_{name}_first"] = history[0][name]
        metrics[f"dpo_{name}_last"] = sum(one[name] for one in history[-5:]) / len(history[-5:])
    metrics |= movement(engine.module, before, optim.batch_tokens, sharing)
    return Trained(lm_tensors(engine.tensors()), metrics)


def reference_scores(
    reference: nn.Module, pairs: Sequence[Pair], batch_tokens: int, sharing: Sharing | None = None
) -> list[Scored]:
    """Each pair with the reference's summed log-probabilities."""
    sequences = [sequence for pair in pairs for sequence in pair.sequences]
    sums = [float(row.sum()) for row in score_sequences(reference, sequences, batch_tokens, sharing)]
    return [(pair, sums[2 * i], sums[2 * i + 1]) for i, pair in enumerate(pairs)]


def dpo_step(
    engine: Engine,
    scored: list[Scored],
    imitations: list[Example],
    config: DPOConfig,
    optim: OptimConfig,
    world: World,
    sharing: Sharing | None = None,
    typical: float | None = None,
) -> dict[str, float]:
    """One update on `scored`. Returns this process's loss, mean margin and share of pairs ranked right.

    `typical`: what a pair weighs on average, over more than this step (see `typical_weight`).
    """
    mine = world.shard(scored)
    own_weight = max(sum(pair.weight for pair, _, _ in scored), 1e-8)
    counts = own_weight / (typical * len(scored)) if typical else 1.0
    total_weight = own_weight / counts
    chosen_examples = [Example(pair.sequences[0], pair.source, pair.weight) for pair, _, _ in scored]
    liked_tokens = answer_tokens([*chosen_examples, *imitations]) / counts
    sequences = [sequence for (pair, _, _), _ in mine for sequence in pair.sequences]
    margins: list[Tensor] = []

    def part(group: Group) -> Tensor:
        pairs = [mine[i // 2] for i in group.order[::2]]
        batch = group.collate(sequences)
        sums = batch.sum_rows(token_logprobs(engine.module, batch)).view(-1, 2)
        reference = torch.tensor([[chosen, rejected] for (_, chosen, rejected), _ in pairs])
        weights = torch.tensor([pair.weight * scale for (pair, _, _), scale in pairs])
        lengths = batch.lengths.view(-1, 2) if config.length_normalised else torch.ones(2)
        policy, anchor = sums / lengths, reference / lengths
        margin = dpo_margin(policy[:, 0], policy[:, 1], anchor[:, 0], anchor[:, 1], config.beta)
        margins.append(margin.detach())
        # dpo_loss is a weighted mean; the part's share of the step's weight makes the parts add up to the whole mean.
        loss = dpo_loss(margin, weights, config.label_smoothing) * weights.sum() / total_weight
        if config.sft_coefficient:
            liked = (sums[:, 0] * weights).sum()
            loss = loss - config.sft_coefficient * liked / liked_tokens
        return loss

    parts: list[Callable[[], Tensor]] = [
        lambda group=group: part(group)  # type: ignore[misc]
        for group in group_pairs(sequences, optim.batch_tokens, sharing)
    ]
    if imitations:
        shard = world.shard(imitations)
        examples = [example for example, _ in shard]
        scales = [scale * config.sft_coefficient for _, scale in shard]
        parts += sft_micro_losses(engine, examples, scales, liked_tokens, optim.batch_tokens)
    loss = engine.step(parts)
    margin = torch.cat(margins)
    return {"loss": loss, "margin": float(margin.mean()), "accuracy": float((margin > 0).float().mean())}


def movement(
    module: nn.Module, some: Sequence[Scored], batch_tokens: int, sharing: Sharing | None = None
) -> dict[str, float]:
    """How far the policy went: change of log-probability per answer, and a KL estimate from the rejected answers.

    Rejected answers were mostly sampled from the reference, so the mean of `ref - policy` over them stands for
    KL(reference || policy) per answer, in nats; over-estimated, because training pushes down exactly these.
    """
    sequences: list[TokenSequence] = [sequence for pair, _, _ in some for sequence in pair.sequences]
    sums = [float(row.sum()) for row in score_sequences(module, sequences, batch_tokens, sharing)]
    chosen = [now - before for now, (_, before, _) in zip(sums[0::2], some, strict=True)]
    rejected = [now - before for now, (_, _, before) in zip(sums[1::2], some, strict=True)]
    count = max(len(some), 1)
    return {
        "chosen_logprob_change": sum(chosen) / count,
        "rejected_logprob_change": sum(rejected) / count,
        "kl": -sum(rejected) / count,
    }


def _rounded(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())
