"""The forward pass of rows that share a prompt (`trainer.shared_prefix`), the cheaper of two ways that give the same.

By mask: whole rows, with a mask of who sees whom. No token twice, but the attention kernel computes all pairs of a row.
By cache: the prompts first; then each answer on a copy of its prompt's keys and values, through which gradients flow.
Only pairs that count are computed, but answers are padded to the longest. Better where many answers share a prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.shared_prefix import PAIRS_PER_HIDDEN, tree_mask

WORTH = 0.9  # two passes have twice the calls: they must save a tenth


def hidden_states(
    backbone: nn.Module, input_ids: Tensor, positions: Tensor | None = None, segments: Tensor | None = None
) -> Tensor:
    """The last layer's output at every place, flat: `[rows * time, hidden]`."""
    if positions is None or segments is None:
        return backbone(input_ids=input_ids, use_cache=False).last_hidden_state.flatten(0, 1)
    answers = Answers.of(segments)
    # A layer that is computed again in the backward pass keeps no cache.
    if not getattr(backbone, "is_activation_checkpointing", False):
        token_cost = PAIRS_PER_HIDDEN * backbone.config.hidden_size
        if answers.cost(token_cost) < WORTH * segments.numel() * (token_cost + segments.shape[1]):
            return by_cache(backbone, input_ids, positions, segments, answers)
    return by_mask(backbone, input_ids, positions, segments)


def by_mask(backbone: nn.Module, input_ids: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
    mask = _for_kernel(backbone, tree_mask(segments))
    output = backbone(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return output.last_hidden_state.flatten(0, 1)


@dataclass(frozen=True)
class Answers:
    """The answers of shared rows: `rows` `[answers]` where each stands, `number` `[rows, time]` which one each place is
    of (-1: none), `prompts` `[rows]` the lengths of the prompts, `longest` the longest answer."""

    rows: Tensor
    number: Tensor
    prompts: Tensor
    longest: int

    @classmethod
    def of(cls, segments: Tensor) -> "Answers":
        held = segments.amax(1)  # answers of each row
        before = held.cumsum(0) - held
        number = torch.where(segments > 0, before[:, None] + segments - 1, -1)
        rows = torch.repeat_interleave(torch.arange(len(segments), device=segments.device), held)
        longest = int(torch.bincount(number[number >= 0]).max())
        return cls(rows, number, (segments == 0).sum(1), longest)

    def cost(self, token_cost: float) -> float:
        """Of the way by cache, in pairs of positions."""
        prompt, rows, count = int(self.prompts.max()), len(self.prompts), len(self.rows)
        tokens = rows * prompt + count * self.longest
        return tokens * token_cost + rows * prompt**2 / 2 + count * self.longest * (prompt + self.longest)


def by_cache(backbone: nn.Module, input_ids: Tensor, positions: Tensor, segments: Tensor, answers: Answers) -> Tensor:
    prompt, longest, device = int(answers.prompts.max()), answers.longest, segments.device
    inside = answers.number >= 0
    lengths = answers.prompts[answers.rows]
    place = positions - answers.prompts[:, None]  # within the answer
    tokens = input_ids.new_zeros(len(answers.rows), longest)
    tokens[answers.number[inside], place[inside]] = input_ids[inside]
    # Behind a shorter prompt stand tokens of its answers: nothing in the prompt sees them, and the mask hides them.
    from transformers import DynamicCache  # settings import the algorithms: they must not wait for this

    cache = DynamicCache(config=backbone.config)
    trunk = backbone(input_ids=input_ids[:, :prompt], past_key_values=cache, use_cache=True).last_hidden_state
    cache.batch_select_indices(answers.rows)
    steps = torch.arange(longest, device=device)
    of_prompt = (torch.arange(prompt, device=device) < lengths[:, None])[:, None].expand(-1, longest, -1)
    of_answer = (steps[None, :] <= steps[:, None])[None].expand(len(lengths), -1, -1)
    branches = backbone(
        input_ids=tokens,
        attention_mask=_for_kernel(backbone, torch.cat([of_prompt, of_answer], -1)[:, None]),
        position_ids=lengths[:, None] + steps,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    rows = torch.arange(len(segments), device=device)[:, None]
    places = torch.where(
        inside, trunk.shape[0] * prompt + answers.number * longest + place, rows * prompt + positions
    ).where(segments >= 0, 0)
    return torch.cat([trunk.flatten(0, 1), branches.flatten(0, 1)])[places.flatten()]


def _for_kernel(backbone: nn.Module, mask: Tensor) -> Tensor:
    """`mask` as the model's attention takes it."""
    if getattr(backbone.config, "_attn_implementation", None) != "eager":
        return mask
    # Eager attention adds the mask to the scores.
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
