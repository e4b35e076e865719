"""The learner and the gate on a real broker, killed and restarted: the same is learned as on the embedded log."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anyloop.log import FEEDBACK, RESPONSES, open_log
from anyloop.sequence import Sequencer
from tests.trainer.loop import Loop, open_loop
from tests.trainer.processes import start_learner
from tests.trainer.test_fault_points import check_once, died, environment, gate_beside, learned, say
from tests.trainer.test_intake import claim as claim_all
from tests.trainer.test_intake import say as append_feedback
from trainer.intake import GROUP, Intake
from trainer.join_store import JoinStore

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


def claim(intake: Intake, store: JoinStore, used: set[str]) -> set[str]:
    """What a round claims, each once."""
    found = claim_all(intake, store, used)
    assert len(found) == len(set(found))
    return set(found)


def until(condition: Callable[[], bool], *intakes: Intake) -> None:
    """Polls all of them until it is so."""
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, [sorted(intake.held()) for intake in intakes]
        for intake in intakes:
            intake.poll(0.1)


def test_trainers_share_partitions_and_take_them_over_without_losing_or_repeating(
    tmp_path: Path, kafka_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ANYLOOP_KAFKA_SESSION_TIMEOUT_S", "3")
    stores = [JoinStore(tmp_path / name / "state.db") for name in ("first", "second")]
    with open_log(kafka_url) as log:
        log.ensure_topics()
        names = append_feedback(log, 0, 24)
        first, second = (Intake(log, store) for store in stores)
        until(lambda: stores[0].counts()["feedback"] == 24, first)
        until(lambda: len(first.held()) == len(second.held()) == 2, first, second)
        assert first.held() | second.held() == {0, 1, 2, 3}
        names |= append_feedback(log, 24, 24)
        until(lambda: log.lag(GROUP, [RESPONSES, FEEDBACK]) == 0, first, second)
        pairs = list(zip((first, second), stores, strict=True))
        until(lambda: sum(store.ready(intake.held())[0] for intake, store in pairs) == 48, first, second)
        used = claim(first, stores[0], set())
        used |= (seconds := claim(second, stores[1], used))
        assert seconds
        assert used == names

        second.close()  # its partitions come back, and are read from where the first had read them
        late = append_feedback(log, 48, 24)
        until(lambda: stores[0].counts()["feedback"] == 72, first)
        assert first.held() == {0, 1, 2, 3}
        assert claim(first, stores[0], used) == late
        assert not [line for line in caplog.messages if "gone before they were read" in line or "made anew" in line]
        first.close()
    for store in stores:
        store.close()
