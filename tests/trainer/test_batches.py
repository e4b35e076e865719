from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.answer_model import AnswerModel, score_sequences, token_logprobs
from trainer.batches import TokenSequence, collate, group_by_length, shuffled_steps

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def sequences_of(seed: int = 0) -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 300, (count,), generator=generator).tolist())

    return [TokenSequence(draw(3 + 7 * i % 19), draw(1 + 5 * i % 13)) for i in range(9)]


def test_a_batch_gives_the_logits_of_each_sequence_alone(checkpoint: Path) -> None:
    model = AnswerModel.load(checkpoint)
    sequences = sequences_of()
    batch = collate(sequences)
    together = batch.split_rows(token_logprobs(model, batch))
    for sequence, row in zip(sequences, together, strict=True):
        ids = torch.tensor([sequence.prompt + sequence.answer])
        logits = model.lm(input_ids=ids).logits[0, len(sequence.prompt) - 1 : -1]
        alone = torch.log_softmax(logits, -1)[range(len(sequence.answer)), list(sequence.answer)]
        torch.testing.assert_close(row, alone, atol=2e-5, rtol=0)


def test_scores_keep_the_order_of_their_sequences(checkpoint: Path) -> None:
    model = AnswerModel.load(checkpoint)
    sequences = sequences_of(1)
    small, large = score_sequences(model, sequences, 40), score_sequences(model, sequences, 4000)
    for one, other in zip(small, large, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)
    assert [len(row) for row in small] == [len(sequence.answer) for sequence in sequences]


def test_positions_of_a_small_batch() -> None:
    batch = collate([TokenSequence((1, 2), (3,)), TokenSequence((4,), (5, 6, 7))])
    assert batch.input_ids.tolist() == [[1, 2, 3, 0], [4, 5, 6, 7]]
    assert batch.index.tolist() == [1, 4, 5, 6]
    assert batch.targets.tolist() == [3, 5, 6, 7]
    assert batch.owner.tolist() == [0, 1, 1, 1]
    assert batch.last.tolist() == [2, 7]
    assert batch.sum_rows(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [1.0, 9.0]


def test_a_sequence_without_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="a prompt and an answer"):
        collate([TokenSequence((1,), ())])


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 200))
def test_groups_hold_every_sequence_once_within_the_bounds(lengths: list[int], bound: int) -> None:
    groups = group_by_length(lengths, bound, max_waste=0.2)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        padded = max(lengths[i] for i in group) * len(group)
        assert len(group) == 1 or padded <= bound
        assert padded - sum(lengths[i] for i in group) <= 0.2 * padded


def test_every_epoch_sees_every_item_once_in_another_order() -> None:
    steps = list(shuffled_steps(10, 4, epochs=2, seed=1))
    first, second = [i for s in steps[:3] for i in s], [i for s in steps[3:] for i in s]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert steps == list(shuffled_steps(10, 4, epochs=2, seed=1))
