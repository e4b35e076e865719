from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.answer_model import AnswerModel, ScalarModel, score_sequences, token_logprobs
from trainer.batches import TokenSequence, collate
from trainer.forward_pass import prepare
from trainer.optimisation import OptimConfig
from trainer.shared_prefix import Group, Sharing, group_answers, group_pairs, tree_mask
from trainer.tree_forward import Answers, by_cache, by_mask

ALWAYS = Sharing(1e9)
ATOL = 2e-5  # fp32, sums over a few hundred products in another order

TOKENS = st.lists(st.integers(0, 299), min_size=1, max_size=12).map(tuple)
PROMPTS = st.sampled_from([(1, 2, 3), (1, 2, 3, 4, 5, 6, 7), (9,), (250,) * 11])
SEQUENCES = st.lists(st.builds(TokenSequence, PROMPTS, TOKENS), min_size=1, max_size=9)


def test_a_row_of_two_answers_and_one_of_one() -> None:
    sequences = [TokenSequence((1, 2), (3,)), TokenSequence((1, 2), (4, 5)), TokenSequence((6,), (7, 8))]
    (group,) = group_answers(sequences, 100, ALWAYS)
    batch = group.collate(sequences)
    assert group.rows == ((0, 1), (2,))
    assert batch.positions is not None
    assert batch.segments is not None
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 2, 3], [0, 1, 2, 0, 0]]
    assert batch.segments.tolist() == [[0, 0, 1, 2, 2], [0, 1, 1, -1, -1]]
    assert batch.index.tolist() == [1, 1, 3, 5, 6]  # both answers of the first row are predicted by its place 1
    assert batch.targets.tolist() == [3, 4, 5, 7, 8]
    assert batch.owner.tolist() == [0, 1, 1, 2, 2]
    assert batch.last.tolist() == [2, 4, 7]
    assert batch.lengths.tolist() == [1, 2, 2]
    assert [row.tolist() for row in batch.split_rows(batch.targets)] == [[3], [4, 5], [7, 8]]


def test_an_answer_sees_the_prompt_and_itself() -> None:
    mask = tree_mask(torch.tensor([[0, 0, 1, 2, 2, -1]]))
    assert mask.shape == (1, 1, 6, 6)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


@settings(max_examples=15, deadline=None)
@given(SEQUENCES)
def test_shared_rows_give_the_logits_of_each_sequence_apart(checkpoint: Path, sequences: list[TokenSequence]) -> None:
    model = AnswerModel.load(checkpoint)
    for group in group_answers(sequences, 100, ALWAYS):
        batch = group.collate(sequences)
        with torch.no_grad():
            expected = token_logprobs(model, collate([sequences[i] for i in group.order]))
            torch.testing.assert_close(token_logprobs(model, batch), expected, atol=ATOL, rtol=0)
            if batch.positions is None or batch.segments is None:
                continue
            tree = (batch.input_ids, batch.positions, batch.segments)
            masked = by_mask(model.lm.get_decoder(), *tree)
            cached = by_cache(model.lm.get_decoder(), *tree, Answers.of(batch.segments))
        real = (batch.segments >= 0).flatten()
        torch.testing.assert_close(cached[real], masked[real], atol=1e-4, rtol=0)  # hidden states of size about 1


def test_many_answers_go_by_cache_and_two_by_mask(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ways = AnswerModel.load(checkpoint), []
    for name, function in (("mask", by_mask), ("cache", by_cache)):
        monkeypatch.setattr(
            f"trainer.tree_forward.by_{name}",
            lambda *inputs, name=name, function=function: ways.append(name) or function(*inputs),
        )
    for lengths in ((4, 40), (20, 24) * 4):
        sequences = [TokenSequence((7,) * 60, (8,) * length) for length in lengths]
        (group,) = group_answers(sequences, 4096, ALWAYS)
        token_logprobs(model, group.collate(sequences))
    assert ways == ["mask", "cache"]


def test_layers_computed_twice_go_by_mask(checkpoint: Path) -> None:
    sequences = [TokenSequence((7,) * 60, (8, 9) * 10)] * 8
    (group,) = group_answers(sequences, 4096, ALWAYS)
    gradients = []
    for checkpointing in (False, True):
        model = AnswerModel.load(checkpoint)
        prepare(model, OptimConfig(activation_checkpointing=checkpointing))
        token_logprobs(model, group.collate(sequences)).sum().backward()
        gradients.append(model.lm.get_input_embeddings().weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)


def pairs_of(seed: int = 0) -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 300, (count,), generator=generator).tolist())

    sequences = []
    for i in range(4):
        prompt = draw(5 + 6 * i)
        sequences += [TokenSequence(prompt, draw(3 + 4 * i)), TokenSequence(prompt, draw(9 - i))]
    return sequences


@pytest.mark.parametrize("way", ["mask", "cache"])
def test_gradients_equal_those_of_the_sequences_apart(
    checkpoint: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A token that costs nothing but its pairs asks for the way by cache, a dear one for the way by mask.
    monkeypatch.setattr("trainer.tree_forward.PAIRS_PER_HIDDEN", 0.0 if way == "cache" else 1e9)
    gradients = []
    for sharing in (None, ALWAYS):
        model = AnswerModel.load(checkpoint)
        for group in group_pairs(pairs_of(), 60, sharing):
            batch = group.collate(pairs_of())
            weights = torch.tensor(group.order) + 1.0
            (batch.sum_rows(token_logprobs(model, batch)) * weights).sum().backward()
        gradients.append({name: one.grad for name, one in model.named_parameters()})
    for name, apart in gradients[0].items():
        assert apart is not None
        assert gradients[1][name] is not None
        torch.testing.assert_close(gradients[1][name], apart, atol=1e-4, rtol=1e-4)


def test_a_scalar_model_scores_the_end_of_each_answer_alike(checkpoint: Path) -> None:
    model = ScalarModel.load(checkpoint)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    for group in group_pairs(pairs_of(), 1000, ALWAYS):
        apart, shared = collate([pairs_of()[i] for i in group.order]), group.collate(pairs_of())
        with torch.no_grad():
            expected, found = model(*apart.inputs(apart.last)), model(*shared.inputs(shared.last))
        torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)


def test_scores_keep_the_order_of_sequences_whose_prompts_are_mixed(checkpoint: Path) -> None:
    model = AnswerModel.load(checkpoint)
    mixed = [pairs_of()[i] for i in (0, 4, 2, 1, 7, 5, 3, 6)]
    for expected, found in zip(
        score_sequences(model, mixed, 4096), score_sequences(model, mixed, 60, ALWAYS), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)


@settings(max_examples=100, deadline=None)
@given(SEQUENCES, st.integers(1, 80), st.sampled_from([None, Sharing(10.0), ALWAYS]))
def test_groups_hold_every_sequence_once_within_the_bound(
    sequences: list[TokenSequence], bound: int, sharing: Sharing | None
) -> None:
    groups = group_answers(sequences, bound, sharing)
    assert sorted(i for group in groups for i in group.order) == list(range(len(sequences)))
    for group in groups:
        assert len(group.rows) == 1 or group.collate(sequences).input_ids.numel() <= bound
        assert all(sequences[i].prompt == sequences[row[0]].prompt for row in group.rows for i in row)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(PROMPTS, TOKENS, TOKENS), min_size=1, max_size=9),
    st.integers(1, 80),
    st.sampled_from([None, Sharing(10.0), ALWAYS]),
)
def test_pairs_stay_together_within_the_bound(
    drawn: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]], bound: int, sharing: Sharing | None
) -> None:
    pairs = [(TokenSequence(prompt, one), TokenSequence(prompt, other)) for prompt, one, other in drawn]
    sequences = [sequence for pair in pairs for sequence in pair]
    groups = group_pairs(sequences, bound, sharing)
    assert sorted(i for group in groups for i in group.order) == list(range(len(sequences)))
    for group in groups:
        firsts, seconds = group.order[::2], group.order[1::2]
        assert [i % 2 for i in firsts] == [0] * len(firsts)
        assert seconds == [i + 1 for i in firsts]
        assert len(firsts) == 1 or group.collate(sequences).input_ids.numel() <= bound


@pytest.mark.parametrize(
    ("prompt", "answer", "rows"),
    [
        pytest.param(200, 50, 1, id="a long prompt is shared"),
        pytest.param(20, 400, 2, id="long answers to a short one cost more in attention than the prompt saves"),
    ],
)
def test_prompts_are_shared_where_that_is_faster(prompt: int, answer: int, rows: int) -> None:
    sequences = [TokenSequence((1,) * prompt, (2,) * answer)] * 2
    (group,) = group_pairs(sequences, 4096, Sharing(768.0))
    assert len(group.collate(sequences).input_ids) == rows


def test_a_sequence_without_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="a prompt and an answer"):
        Group(((0, 1),)).collate([TokenSequence((1,), (2,)), TokenSequence((1,), ())])
