"""Whether a model computes answers in one row with their shared prompt exactly as it computes them apart.

Asked of the loaded weights: some random answers both ways, a few milliseconds. A model that takes no mask of its own,
numbers positions otherwise, or remembers by other means than attention to all tokens is trained the plain way.
"""

import logging
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.batches import Batch, TokenSequence, collate
from trainer.shared_prefix import PAIRS_PER_HIDDEN, Group, Sharing
from trainer.tree_forward import Answers, by_cache, by_mask, hidden_states

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of the hidden states' largest value; fp32 kernels differ by some 1e-6


def prove_sharing(module: nn.Module, mode: Literal["auto", "off"]) -> Sharing | None:
    """How `module`, an AnswerModel or a ScalarModel before any engine wraps it, may share prompts; None: not at all."""
    if mode == "off":
        return None
    backbone = module.lm.get_decoder() if hasattr(module, "lm") else module.backbone
    if reason := refusal(backbone):
        log.info("prompts are not shared between answers: %s", reason)
        return None
    return Sharing(PAIRS_PER_HIDDEN * backbone.config.hidden_size)


def refusal(backbone: nn.Module) -> str:
    """Why `backbone` may not share prompts; empty if it may."""
    if (windowed := _window(backbone)) is not None:
        return windowed
    sequences = _probe(int(backbone.config.vocab_size))
    batch = Group(((0, 1, 2), (3, 4))).collate(sequences)
    try:
        apart = _at_answers(backbone, collate(sequences), "")
        gap = max(float((apart - _at_answers(backbone, batch, way)).abs().max()) for way in ("mask", "cache"))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        return f"{type(backbone).__name__} cannot compute a tree of answers: {error}"
    if not gap < TOLERANCE * float(apart.abs().max()):
        return f"{type(backbone).__name__} computes answers with a shared prompt differently (by {gap:.2g})"
    return ""


def _window(backbone: nn.Module) -> str | None:
    """A layer that sees only some of the tokens, which a short probe would not notice."""
    config = backbone.config
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        return f"{type(backbone).__name__} has layers of {', '.join(sorted(kinds - {'full_attention'}))}"
    if not kinds and getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"{type(backbone).__name__} has a sliding window"
    return None


@torch.no_grad()
def _at_answers(backbone: nn.Module, batch: Batch, way: Literal["", "mask", "cache"]) -> Tensor:
    device = next(backbone.parameters()).device
    input_ids, index, *tree = (one.to(device) for one in batch.inputs(batch.index))
    if way == "mask":
        return by_mask(backbone, input_ids, tree[0], tree[1])[index].float()
    if way == "cache":
        return by_cache(backbone, input_ids, tree[0], tree[1], Answers.of(tree[1]))[index].float()
    return hidden_states(backbone, input_ids)[index].float()


def _probe(vocabulary: int) -> list[TokenSequence]:
    """Three answers to one prompt and two to a shorter one, so that one row of two is padded."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, vocabulary, (count,), generator=generator).tolist())

    first, second = draw(12), draw(7)
    return [TokenSequence(first, draw(n)) for n in (5, 3, 9)] + [TokenSequence(second, draw(n)) for n in (4, 6)]
