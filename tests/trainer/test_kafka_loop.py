"""The learner and the gate on a real broker, killed and restarted: the same is learned as on the embedded log."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from anyloop.log import FEEDBACK, RESPONSES, open_log
from anyloop.sequence import Sequencer
from tests.trainer.loop import Loop, open_loop
from tests.trainer.processes import start_learner
from tests.trainer.test_fault_points import check_once, died, environment, gate_beside, learned, say
from trainer.intake import GROUP

TWO_ROUNDS = {"max_feedback": 5}
FAULTS = ["applied:1", "claimed:1", "files_synced:2", "announced:1", "finished:1"]


@pytest.fixture
def kafka_loop(
    tmp_path: Path, checkpoint: Path, sequencer: Sequencer, kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Loop]:
    monkeypatch.setenv("ANYLOOP_KAFKA_SESSION_TIMEOUT_S", "1.5")
    with open_log(kafka_url) as log:
        log.ensure_topics()
        with open_loop(tmp_path / "kafka", checkpoint, sequencer, log) as loop:
            loop.settings = loop.settings.model_copy(update={"log_url": kafka_url})
            yield loop


@pytest.mark.e2e
def test_a_learner_killed_again_and_again_learns_from_each_feedback_once(kafka_loop: Loop, loop: Loop) -> None:
    for one in (kafka_loop, loop):
        say(one)
    with gate_beside(loop):
        assert not died(start_learner(environment(loop, **TWO_ROUNDS)))
    with gate_beside(kafka_loop):
        for fault in FAULTS:
            assert died(start_learner(environment(kafka_loop, **TWO_ROUNDS), fault)), f"{fault} was not reached"
        assert not died(start_learner(environment(kafka_loop, **TWO_ROUNDS)))
    check_once(kafka_loop)
    assert learned(kafka_loop) == learned(loop)
    assert kafka_loop.log.lag(GROUP, [RESPONSES, FEEDBACK]) == 0
