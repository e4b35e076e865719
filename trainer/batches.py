"""Token sequences to tensors.

Sequences are padded on the right and grouped by length. Under causal attention no position sees what follows it, so the
padding changes nothing: every logit equals that of the sequence alone, without a mask, on the fastest attention kernel.
Only the positions that predict an answer token are kept, flat over the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenSequence:
    """A prompt and the answer to score or to learn."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Batch:
    """Sequences as tensors. Places are flat indices into `rows * time`.

    `input_ids` `[rows, time]`; `index` `[tokens]` the place before each answer token; `targets` `[tokens]` the
    answer tokens; `owner` `[tokens]` their sequence; `last` `[sequences]` the place of each sequence's final token.
    Where several sequences share a row (`trainer.shared_prefix`), `positions` and `segments`, both `[rows, time]`, say
    where in its sequence each token stands and whether it is of the prompt (0) or of which answer (1, 2, ...).
    """

    input_ids: Tensor
    index: Tensor
    targets: Tensor
    owner: Tensor
    last: Tensor
    positions: Tensor | None = None
    segments: Tensor | None = None

    def inputs(self, index: Tensor) -> tuple[Tensor, ...]:
        """What an AnswerModel or a ScalarModel takes to give its output at the places `index`."""
        if self.positions is None or self.segments is None:
            return self.input_ids, index
        return self.input_ids, index, self.positions, self.segments

    @property
    def sequences(self) -> int:
        return len(self.last)

    @property
    def lengths(self) -> Tensor:
        """Answer tokens of each sequence, `[sequences]`."""
        return torch.bincount(self.owner, minlength=self.sequences)

    def sum_rows(self, values: Tensor) -> Tensor:
        """`[tokens]` to the sum of each sequence, `[sequences]`."""
        return values.new_zeros(self.sequences).index_add(0, self.owner, values)

    def split_rows(self, values: Tensor) -> list[Tensor]:
        """`[tokens]` to one tensor per sequence."""
        return list(values.split(self.lengths.tolist()))


def collate(sequences: Sequence[TokenSequence]) -> Batch:
    """One batch of all `sequences`, in their order. Raises ValueError on an empty prompt or answer."""
    if any(not sequence.prompt or not sequence.answer for sequence in sequences):
        raise ValueError("every sequence needs a prompt and an answer")
    width = max(len(sequence) for sequence in sequences)
    input_ids = torch.zeros(len(sequences), width, dtype=torch.long)
    index: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    for row, sequence in enumerate(sequences):
        tokens = sequence.prompt + sequence.answer
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
        begin = row * width + len(sequence.prompt) - 1
        index.extend(range(begin, begin + len(sequence.answer)))
        targets.extend(sequence.answer)
        owner.extend([row] * len(sequence.answer))
    last = [row * width + len(sequence) - 1 for row, sequence in enumerate(sequences)]
    return Batch(input_ids, torch.tensor(index), torch.tensor(targets), torch.tensor(owner), torch.tensor(last))


def group_by_length(lengths: Sequence[int], max_tokens: int, max_waste: float = 0.2) -> list[list[int]]:
    """Positions in `lengths`, grouped so that a padded group holds at most `max_tokens` and `max_waste` of padding.

    A single sequence longer than `max_tokens` is a group of its own.
    """
    groups: list[list[int]] = []
    group: list[int] = []
    used = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[position]
        if group:
            padded = lengths[group[0]] * (len(group) + 1)
            if padded > max_tokens or padded - used - length > max_waste * padded:
                groups.append(group)
                group, used = [], 0
        group.append(position)
        used += length
    if group:
        groups.append(group)
    return groups


def shuffled_steps(count: int, batch: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """Positions `[0, count)` in a new random order each epoch, `batch` at a time."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator).tolist()
        for begin in range(0, count, batch):
            yield order[begin : begin + batch]


def steps_in(count: int, batch: int, epochs: int) -> int:
    return epochs * ((count + batch - 1) // batch)
