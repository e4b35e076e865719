"""What a batch computes for a sequence is what the sequence gives alone: no slice is off, whatever stands around it.

Prompts hold chat turns and media codes, answers end with the chat suffix or go on behind it, and neighbours are shorter
or longer. The oracle is the plain model on one sequence, every position's logits, sliced by hand.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyloop.modality import Modality
from anyloop.sequence import Codes, OutputGrammar, Segment, Sequencer, Turn
from tests.models.random_omni import build_random_omni
from trainer.algorithms.actor import Answers, actor_pass
from trainer.algorithms.reward_model import reward_scores, with_critique
from trainer.algorithms.rollout import Rollout
from trainer.answer_model import AnswerModel, ScalarModel, score_sequences
from trainer.batches import TokenSequence
from trainer.grammar_table import GrammarTable
from trainer.prefix_proof import prove_sharing
from trainer.shared_prefix import Sharing, group_answers

ATOL = 2e-5  # fp32, of log-probabilities around -6
QUICK = settings(max_examples=25, deadline=None, derandomize=True)


class Omni:
    def __init__(self) -> None:
        self.folder = TemporaryDirectory()
        self.path = build_random_omni(Path(self.folder.name) / "omni")
        self.sequencer = Sequencer.from_pretrained(self.path)
        self.model = AnswerModel.load(self.path)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.scalar = ScalarModel.load(self.path)
        self.scalar.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
        self.width = int(self.model.lm.config.vocab_size)
        sharing = prove_sharing(self.model, "auto")
        assert sharing is not None
        self.always = Sharing(token_cost=1e9)  # shares whenever prompts are the same

    def logits(self, tokens: Sequence[int]) -> Tensor:
        return self.model.lm(torch.tensor([list(tokens)])).logits[0]


@cache
def omni() -> Omni:
    return Omni()


MEDIA = st.sampled_from([Modality.IMAGE, Modality.AUDIO, Modality.VIDEO])
WORDS = st.text("abc déf.", min_size=1, max_size=8)


@st.composite
def segments(draw: st.DrawFn) -> tuple[Segment, ...]:
    def one() -> Segment:
        if draw(st.booleans()):
            return draw(WORDS)
        modality = draw(MEDIA)
        span = omni().sequencer.layout.codes[modality]
        return Codes(
            modality, tuple(draw(st.lists(st.integers(0, span.size - 1), min_size=span.length, max_size=span.length)))
        )

    return tuple(one() for _ in range(draw(st.integers(1, 2))))


@st.composite
def sequences(draw: st.DrawFn) -> TokenSequence:
    """A conversation and its answer, closed, or cut somewhere, or with more behind its end."""
    sequencer = omni().sequencer
    roles = ["user", "assistant", "user"][: draw(st.sampled_from([1, 3]))]
    prompt = sequencer.prompt([Turn(role, draw(segments())) for role in roles])  # type: ignore[arg-type]
    answer = sequencer.answer(draw(segments()))
    ending = draw(st.sampled_from(["closed", "cut", "suffix"]))
    if ending == "cut":
        answer = answer[: draw(st.integers(1, len(answer)))]
    if ending == "suffix":
        answer = answer + sequencer.encode_text(draw(WORDS))
    return TokenSequence(tuple(prompt), tuple(answer))


@st.composite
def batches(draw: st.DrawFn) -> list[TokenSequence]:
    """Several sequences, some of which answer the same prompt."""
    several = [draw(sequences()) for _ in range(draw(st.integers(1, 3)))]
    more = [TokenSequence(one.prompt, draw(sequences()).answer) for one in several if draw(st.booleans())]
    return draw(st.permutations(several + more))


def alone(sequence: TokenSequence) -> Tensor:
    """Position `len(prompt) - 1 + t` predicts answer token `t`."""
    logprobs = omni().logits(sequence.prompt + sequence.answer).log_softmax(-1)
    return torch.stack([logprobs[len(sequence.prompt) - 1 + t, token] for t, token in enumerate(sequence.answer)])


@QUICK
@given(batches(), st.sampled_from([1, 150, 4096]), st.booleans())
def test_a_row_of_a_batch_is_the_sequence_alone(some: list[TokenSequence], batch_tokens: int, share: bool) -> None:
    found = score_sequences(omni().model, some, batch_tokens, omni().always if share else None)
    for row, sequence in zip(found, some, strict=True):
        torch.testing.assert_close(row, alone(sequence), atol=ATOL, rtol=0)


@QUICK
@given(batches())
def test_padding_on_the_left_as_others_do_gives_the_same(some: list[TokenSequence]) -> None:
    width = max(map(len, some))
    rows = [[0] * (width - len(one)) + [*one.prompt, *one.answer] for one in some]
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in some])
    ids = torch.tensor(rows)
    logits = omni().model.lm(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    for row, sequence, ours in zip(logprobs, some, score_sequences(omni().model, some, 4096), strict=True):
        torch.testing.assert_close(row[-len(sequence.answer) :], ours, atol=ATOL, rtol=0)


@QUICK
@given(sequences(), WORDS)
def test_what_stands_behind_an_answer_does_not_change_it(sequence: TokenSequence, more: str) -> None:
    suffix = tuple(omni().sequencer.prompt([Turn("user", (more,))]))
    longer = TokenSequence(sequence.prompt, sequence.answer + suffix)
    (short,), (long,) = (score_sequences(omni().model, [one], 4096) for one in (sequence, longer))
    torch.testing.assert_close(long[: len(short)], short, atol=ATOL, rtol=0)


@QUICK
@given(batches(), st.sampled_from([150, 4096]), st.booleans(), st.sampled_from(["answer", "critique"]))
def test_a_reward_is_read_at_the_last_token(
    some: list[TokenSequence], batch_tokens: int, share: bool, view: str
) -> None:
    words = "It shows one small red circle: one yes, small no."
    read = [with_critique(omni().sequencer, one, words) for one in some] if view == "critique" else some
    with torch.no_grad():
        scores = reward_scores(omni().scalar, read, batch_tokens, omni().always if share else None)
        for score, one in zip(scores, read, strict=True):
            ids = torch.tensor([one.prompt + one.answer])
            hidden = omni().scalar.backbone(input_ids=ids).last_hidden_state[0, -1]
            torch.testing.assert_close(torch.tensor(score), omni().scalar.head(hidden)[0], atol=1e-4, rtol=1e-4)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    """An answer that the grammar allows, walked token by token, with the limit it was sampled under."""
    layout = omni().sequencer.layout
    modalities = tuple(sorted(draw(st.sets(st.sampled_from([Modality.TEXT, *layout.codes])))))
    limit = draw(st.integers(20, 45))
    table = GrammarTable(layout, omni().width)
    answer: list[int] = []
    while len(answer) < limit and layout.end not in answer:
        rows = table.rows([*answer, 0], modalities, limit)
        allowed = table.masks(rows[-1:])[0].nonzero().flatten().tolist()
        answer.append(allowed[draw(st.integers(0, 10**6)) % len(allowed)])
        if len(answer) > 6 and not inside_medium(answer, modalities):
            answer.append(layout.end)
    prompt = tuple(omni().sequencer.prompt([Turn("user", (draw(WORDS),))]))
    return Rollout(prompt, tuple(answer), (-1.0,) * len(answer), modalities, limit)


def inside_medium(answer: Sequence[int], modalities: Sequence[Modality]) -> bool:
    grammar = OutputGrammar(omni().sequencer.layout, modalities or None, omni().width)
    for token in answer:
        grammar.advance(token)
    return grammar.tokens_to_close > 0


def walked(rollout: Rollout) -> list[Tensor]:
    """The grammar at each step, by its definition."""
    layout = omni().sequencer.layout
    grammar = OutputGrammar(layout, rollout.modalities or None, omni().width)
    masks = []
    for at, token in enumerate(rollout.answer):
        mask = torch.from_numpy(grammar.mask().copy())
        if not grammar.tokens_to_close:
            for span in layout.codes.values():
                mask[span.open] &= span.length + 2 <= rollout.limit - at
        masks.append(mask)
        grammar.advance(token)
    return masks


@QUICK
@given(st.lists(rollouts(), min_size=1, max_size=3), st.booleans())
def test_the_actor_sees_each_token_under_the_grammar_of_its_step(some: list[Rollout], share: bool) -> None:
    table = GrammarTable(omni().sequencer.layout, omni().width)
    if share:
        some = [replace(one, prompt=some[0].prompt) for one in some]
    for group in group_answers([one.sequence for one in some], 4096, omni().always if share else None):
        found = actor_pass(omni().model, Answers.of(some, group, table)).logprobs
        rows = found.split([len(some[i].answer) for i in group.order])
        for i, row in zip(group.order, rows, strict=True):
            tokens = [*some[i].prompt, *some[i].answer]
            for t, mask in enumerate(walked(some[i])):
                assert bool(mask[some[i].answer[t]])
                logits = omni().logits(tokens)[len(some[i].prompt) - 1 + t].masked_fill(~mask, float("-inf"))
                expected = logits.log_softmax(-1)[some[i].answer[t]]
                torch.testing.assert_close(row[t], expected, atol=ATOL, rtol=0)
