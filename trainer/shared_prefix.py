"""Answers to one prompt in one row: `[prompt, a, b, ...]`, so that the prompt is computed once for all of them.

Each answer sees the prompt and itself, and its positions begin where the prompt ends: a tree of attention, the prompt
its trunk. Every logit and every gradient equals that of the sequences apart (`trainer.prefix_proof` verifies it for a
model at load time). Two answers half as long as their prompt take 4 tokens where apart they take 6.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.batches import Batch, TokenSequence, collate, group_by_length

# A token's linear layers cost about 24 * hidden^2 operations and a pair of positions 4 * hidden in attention; but
# attention kernels reach half the speed of matrix products (measured on a CPU, hidden size 256: 790 pairs per token).
PAIRS_PER_HIDDEN = 3.0

PADDING = -1  # the segment of padding; 0 is the prompt, 1, 2, ... the answers


@dataclass(frozen=True)
class Sharing:
    """That a model may share prompts, and when it gains.

    `token_cost`: the pairs of positions in attention that cost as much time as a token in all other layers. Attention
    grows with the square of a row, the tokens saved only with its length.
    """

    token_cost: float

    def gains(self, row: int, prompt: int, answer: int) -> bool:
        """Whether `answer` tokens cost less at the end of a row of `row` tokens than after a `prompt` of their own.

        The tree's mask makes the kernel compute all pairs; causal attention alone computes half of them.
        """
        together = answer * self.token_cost + (row + answer) ** 2 - row**2
        apart = (prompt + answer) * self.token_cost + (prompt + answer) ** 2 / 2
        return together < apart


@dataclass(frozen=True)
class Group:
    """Sequences of one forward pass, by their positions in a list; those of a row share their prompt."""

    rows: tuple[tuple[int, ...], ...]

    @property
    def order(self) -> list[int]:
        """The positions in the order of the batch."""
        return [i for row in self.rows for i in row]

    def collate(self, sequences: Sequence[TokenSequence]) -> Batch:
        """The batch of the group's `sequences`, of all that were grouped. ValueError on an empty prompt or answer."""
        chosen = [sequences[i] for i in self.order]
        if all(len(row) == 1 for row in self.rows):
            return collate(chosen)  # nothing to share: no mask, the fastest attention kernel
        if any(not sequence.prompt or not sequence.answer for sequence in chosen):
            raise ValueError("every sequence needs a prompt and an answer")
        return _collate_rows([[sequences[i] for i in row] for row in self.rows])


def group_answers(sequences: Sequence[TokenSequence], max_tokens: int, sharing: Sharing | None) -> list[Group]:
    """All `sequences`, those with the same prompt brought together, in groups of at most `max_tokens` with padding.

    A single row longer than `max_tokens` is a group of its own.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, sequence in enumerate(sequences):
        by_prompt.setdefault(sequence.prompt, []).append(i)
    rows = [row for same in by_prompt.values() for row in _shared_rows(sequences, same, sharing, max_tokens)]
    lengths = [row_tokens([sequences[i] for i in row]) for row in rows]
    return [Group(tuple(tuple(rows[number]) for number in group)) for group in group_by_length(lengths, max_tokens)]


def group_pairs(sequences: Sequence[TokenSequence], max_tokens: int, sharing: Sharing | None) -> list[Group]:
    """`sequences` are pairs one after the other, `[chosen, rejected, chosen, ...]`, and pairs stay together.

    `order[::2]` of a group are the positions of the first ones, `order[1::2]` those of the second.
    """
    units = [_shared_rows(sequences, (i, i + 1), sharing) for i in range(0, len(sequences), 2)]
    groups: list[Group] = []
    for rows in (1, 2):  # pairs in one row each, and pairs of two rows of equal width
        chosen = [unit for unit in units if len(unit) == rows]
        lengths = [rows * max(row_tokens([sequences[i] for i in row]) for row in unit) for unit in chosen]
        for group in group_by_length(lengths, max_tokens):
            groups.append(Group(tuple(tuple(row) for number in group for row in chosen[number])))
    return groups


def _collate_rows(rows: Sequence[Sequence[TokenSequence]]) -> Batch:
    width = max(row_tokens(row) for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    segments = torch.full((len(rows), width), PADDING)
    index: list[int] = []
    last: list[int] = []
    for number, row in enumerate(rows):
        prompt = row[0].prompt
        at = len(prompt)
        input_ids[number, :at] = torch.tensor(prompt)
        positions[number, :at] = torch.arange(at)
        segments[number, :at] = 0
        for segment, sequence in enumerate(row, start=1):
            end = at + len(sequence.answer)
            input_ids[number, at:end] = torch.tensor(sequence.answer)
            positions[number, at:end] = torch.arange(len(prompt), len(sequence))
            segments[number, at:end] = segment
            # The prompt's last place predicts every answer's first token.
            index.extend(number * width + place for place in (len(prompt) - 1, *range(at, end - 1)))
            last.append(number * width + end - 1)
            at = end
    answers = [sequence.answer for row in rows for sequence in row]
    targets = torch.tensor([token for answer in answers for token in answer])
    owner = torch.tensor([i for i, answer in enumerate(answers) for _ in answer])
    return Batch(input_ids, torch.tensor(index), targets, owner, torch.tensor(last), positions, segments)


def _shared_rows(
    sequences: Sequence[TokenSequence], order: Sequence[int], sharing: Sharing | None, max_tokens: int | None = None
) -> list[list[int]]:
    """`order`, cut into rows: neighbours with the same prompt stay together while that gains, up to `max_tokens`."""
    rows: list[list[int]] = []
    used = 0
    for i in order:
        prompt, answer = len(sequences[i].prompt), len(sequences[i].answer)
        if (
            sharing is not None
            and rows
            and sequences[rows[-1][0]].prompt == sequences[i].prompt
            and (max_tokens is None or used + answer <= max_tokens)
            and sharing.gains(used, prompt, answer)
        ):
            rows[-1].append(i)
            used += answer
        else:
            rows.append([i])
            used = prompt + answer
    return rows


def row_tokens(sequences: Sequence[TokenSequence]) -> int:
    """Length of the row that `sequences`, all answers to one prompt, share."""
    return len(sequences[0].prompt) + sum(len(sequence.answer) for sequence in sequences)


def tree_mask(segments: Tensor) -> Tensor:
    """`[rows, time]` segments to `[rows, 1, time, time]` bool: true where a query (third axis) may see a key (last).

    Padding sees itself and the prompt before it, so that no row of the softmax is empty.
    """
    time = torch.arange(segments.shape[1], device=segments.device)
    seen = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    return (seen & (time[None, :] <= time[:, None]))[:, None]
