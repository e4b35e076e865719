"""Rollouts carry log-probabilities that the engine can repeat; the others would give meaningless importance ratios."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from anyloop.log import open_log
from anyloop.modality import Modality
from anyloop.registry import Registry
from anyloop.sequence import Sequencer, Turn
from services.policy.engine.answer_masks import MaskTable
from tests.trainer.fake_services import BASE, FakeServices
from trainer.algorithms.rollout import Rollout
from trainer.clients import Services
from trainer.config import TrainerSettings
from trainer.examples import Seed
from trainer.grammar_table import GrammarTable
from trainer.rollouts import sample_rollouts


@pytest.fixture
def services(tmp_path: Path, sequencer: Sequencer) -> Iterator[FakeServices]:
    with ExitStack() as stack:
        log = open_log(f"sqlite:///{tmp_path}/log.db")
        stack.callback(log.close)
        log.ensure_topics()
        yield stack.enter_context(FakeServices(sequencer, log, Registry(tmp_path / "registry")))


async def sample(services: FakeServices, home: Path, checkpoint: Path) -> list[Rollout]:
    prompt = tuple(services.sequencer.prompt([Turn("user", ("Draw it.",))]))
    seed = Seed("r", prompt, (), (Modality.TEXT,), None, "", 1.0)
    settings = TrainerSettings(ppo_rollouts=70, max_answer_tokens=48)
    async with Services(services.settings(home, checkpoint)) as clients:
        return await sample_rollouts(clients, services.registry, BASE, [seed], 0, None, settings, "trainer-key")


async def test_what_the_engine_scores_as_it_logged_is_kept(
    services: FakeServices, tmp_path: Path, checkpoint: Path
) -> None:
    services.score_shift = 0.01
    assert len(await sample(services, tmp_path, checkpoint)) == 70
    assert [len(request.sequences) for request in services.scored] == [64, 6]
    assert {(request.version, request.grammar) for request in services.scored} == {(BASE, True)}
    assert {one.max_tokens for request in services.scored for one in request.sequences} == {48}


async def test_what_it_cannot_repeat_is_left_out_and_said(
    services: FakeServices, tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    services.score_shift = 0.5
    with caplog.at_level(logging.WARNING, "trainer.rollouts"):
        assert await sample(services, tmp_path, checkpoint) == []
    assert "70 of 70 rollouts" in caplog.text
    assert "differ by up to 0.5" in caplog.text


@pytest.mark.parametrize("limit", [0, 20, 40])
@pytest.mark.parametrize("modalities", [None, (Modality.TEXT, Modality.IMAGE)])
def test_the_masks_of_training_are_the_engines(
    sequencer: Sequencer, limit: int, modalities: tuple[Modality, ...] | None
) -> None:
    layout = sequencer.layout
    image = layout.codes[Modality.IMAGE]
    answer = [5, image.open, *[image.begin] * image.length, image.close, 6]
    table = MaskTable(layout, layout.vocabulary_size)
    state = table.answer([str(m) for m in modalities] if modalities else None, limit or 1000)
    expected = []
    for at, token in enumerate(answer):
        row = state.row((limit or 1000) - at)  # may add rows to the table
        expected.append(table.rows[row] == 0)
        state.advance(token)
    found = GrammarTable(layout, layout.vocabulary_size)
    assert torch.equal(found.masks(found.rows(answer, modalities, limit)), torch.stack(expected))
