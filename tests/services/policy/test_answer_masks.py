"""Answers are well formed by construction: only asked modalities, spans whole, never cut by max_tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anyloop.modality import Modality
from anyloop.sequence import Codes, Sequencer
from services.hosts.interface import HostError
from services.policy.engine import Engine, Request, Sampling, load_checkpoint
from services.policy.engine.answer_masks import MaskTable
from services.policy.engine.sampler import sample
from tests.models.random_omni import build_random_omni


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_omni(tmp_path_factory.mktemp("omni") / "model")


@pytest.fixture(scope="module")
def sequencer(model_dir: Path) -> Sequencer:
    return Sequencer.from_pretrained(model_dir)


def _answers(
    model_dir: Path, sequencer: Sequencer, modalities: list[str] | None, max_tokens: int, count: int = 24
) -> list[list[int]]:
    masks = MaskTable(sequencer.layout, sequencer.layout.vocabulary_size)
    engine = Engine(slots=count, max_tokens=128, queue=64, masks=masks, end_token=sequencer.layout.end)
    engine.add_weights(load_checkpoint(model_dir, "v0", layout=sequencer.layout))
    engine.activate("v0", "finish")
    requests = []
    for seed in range(count):
        sampling = Sampling(temperature=1.0, seed=seed, max_tokens=max_tokens)
        answer = masks.answer(modalities, max_tokens)
        requests.append(Request(str(seed), sequencer.prompt([]), sampling, answer=answer))
        engine.submit(requests[-1])
    while engine.busy:
        assert all(end.error is None for end in engine.step())
    return [request.output for request in requests]


def _random_draws(sequencer: Sequencer, modalities: list[str], sampling: list[Sampling]) -> list[list[int]]:
    """Answers drawn from logits that know nothing of the grammar: what is well formed is the masks' doing."""
    masks = MaskTable(sequencer.layout, sequencer.layout.vocabulary_size)
    requests = [Request("r", [1, 2], each, answer=masks.answer(modalities, each.max_tokens)) for each in sampling]
    running = list(requests)
    noise = torch.Generator().manual_seed(0)
    while running:
        rows = [request.answer.row(request.remaining) for request in running if request.answer is not None]
        logits = 4 * torch.randn(len(running), masks.rows.shape[1], generator=noise) + masks.rows[rows]
        for request, token in zip(running, sample(logits, running).tokens, strict=True):
            request.append(token, 0.0, "v")
            assert request.answer is not None
            request.answer.advance(token)
        end = sequencer.layout.end
        running = [request for request in running if request.remaining and request.last_token != end]
    return [request.output for request in requests]


@pytest.mark.parametrize(
    "features",
    [
        {"temperature": 2.0},
        {"top_p": 0.5},
        {"top_k": 3},
        {"min_p": 0.9},
        {"repetition_penalty": 100.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"repetition_penalty": 0.5, "presence_penalty": -2.0, "frequency_penalty": -2.0},
        {"temperature": 0.0, "repetition_penalty": 50.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("biased", [False, True])
def test_no_sampling_feature_opens_a_code_that_was_not_asked_for(
    sequencer: Sequencer, features: dict[str, float], biased: bool
) -> None:
    layout = sequencer.layout
    image, audio, video = (layout.codes[Modality(name)] for name in ("image", "audio", "video"))
    # The strongest bias for what is forbidden, and against what would close a span.
    strangers = [audio.open, video.open, *range(audio.begin, audio.begin + 8), *range(video.begin, video.begin + 8)]
    bias = dict.fromkeys(strangers, 100.0) | {image.close: -100.0, layout.end: -100.0, image.open: 20.0}
    asked: dict[str, Any] = {**features, "logit_bias": bias if biased else {}, "max_tokens": 60}
    outputs = _random_draws(sequencer, ["text", "image"], [Sampling(seed=seed, **asked) for seed in range(16)])
    for output in outputs:
        assert not set(output) & {audio.open, audio.close, video.open, video.close}
        assert {layout.modality_of(token) for token in output} <= {None, Modality.TEXT, Modality.IMAGE}
        at = 0
        while at < len(output):
            if output[at] == image.open:
                inside = output[at + 1 : at + 1 + image.length]
                assert len(inside) == image.length
                assert all(image.begin <= token < image.begin + image.size for token in inside)
                assert output[at + 1 + image.length] == image.close
                at += image.length + 2
            else:
                assert output[at] < layout.text_tokens or output[at] == layout.end
                at += 1
    assert not biased or any(image.open in output for output in outputs)


@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_an_answer_in_one_medium_is_whole_spans_of_it(model_dir: Path, sequencer: Sequencer, modality: str) -> None:
    span = sequencer.layout.codes[Modality(modality)]
    for output in _answers(model_dir, sequencer, [modality], 60):
        segments = sequencer.parse(output)
        assert segments
        assert all(isinstance(segment, Codes) and segment.modality == modality for segment in segments)
        ended = output[-1] == sequencer.layout.end
        assert len(output) - ended == len(segments) * (span.length + 2)


def test_a_text_answer_holds_no_code(model_dir: Path, sequencer: Sequencer) -> None:
    layout = sequencer.layout
    for output in _answers(model_dir, sequencer, ["text"], 30):
        assert all(token < layout.text_tokens or token == layout.end for token in output)


@pytest.mark.parametrize("max_tokens", [1, 5, 13, 14, 17, 18, 19, 40])
def test_max_tokens_never_cuts_a_code_span(model_dir: Path, sequencer: Sequencer, max_tokens: int) -> None:
    layout = sequencer.layout
    opens = {span.open: span for span in layout.codes.values()}
    for output in _answers(model_dir, sequencer, None, max_tokens):
        assert len(output) <= max_tokens
        at = 0
        while at < len(output):
            span = opens.get(output[at])
            if span is None:
                at += 1
                continue
            assert at + span.length + 1 < len(output)
            assert output[at + span.length + 1] == span.close
            at += span.length + 2


def test_an_answer_is_never_empty(model_dir: Path, sequencer: Sequencer) -> None:
    assert all(output[0] != sequencer.layout.end for output in _answers(model_dir, sequencer, None, 20))


def test_a_medium_that_cannot_fit_is_refused(sequencer: Sequencer) -> None:
    masks = MaskTable(sequencer.layout, 0)
    with pytest.raises(HostError, match="at least 18 tokens"):
        masks.answer(["image"], 17)
    masks.answer(["image"], 18)


def test_an_unknown_modality_is_refused_by_name(sequencer: Sequencer) -> None:
    with pytest.raises(HostError, match="does not answer in 'smell'"):
        MaskTable(sequencer.layout, 0).answer(["text", "smell"], 20)


def test_masks_are_shared_by_all_answers_of_the_same_modalities(sequencer: Sequencer) -> None:
    masks = MaskTable(sequencer.layout, 0)
    masks.answer(["image", "text"], 64)
    rows = masks.rows
    masks.answer(["text", "image"], 64)
    assert masks.rows is rows
    assert torch.isinf(rows[1:]).any(-1).all()
