"""Kill -9 at every step: after a restart the same is learned as without, each example once."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from anyloop.log import FEEDBACK, Event, dlq
from anyloop.sequence import Sequencer
from tests.trainer.events import feedback
from tests.trainer.fake_services import BASE
from tests.trainer.loop import FAST, Loop, open_sqlite_loop, states
from tests.trainer.processes import start_gate, start_learner
from trainer.fault_points import VARIABLE, FaultPoint, arm

OF_THE_GATE = [FaultPoint.GATE_EVALUATED, FaultPoint.GATE_RECORDED, FaultPoint.GATE_ANNOUNCED]
OF_PPO = [FaultPoint.ROLLOUTS_STAGED]
OF_CHECKPOINTS = [FaultPoint.TRAINING_SAVED]  # test_resume.py
OF_LATE_FEEDBACK = [FaultPoint.LATE_SET_ASIDE]
OF_ROLLOUTS = [FaultPoint.ROLLOUT_DECIDED]  # test_approval_rounds.py
_OTHERS = (*OF_THE_GATE, *OF_PPO, *OF_CHECKPOINTS, *OF_LATE_FEEDBACK, *OF_ROLLOUTS)
OF_THE_LEARNER = [point for point in FaultPoint if point not in _OTHERS]

Learned = dict[str, list[tuple[list[str], str, Any]]]
Undisturbed = Callable[..., Learned]
_undisturbed: dict[str, Learned] = {}


def environment(loop: Loop, **more: object) -> dict[str, str]:
    """What the processes need to know."""
    settings = loop.settings
    said = {
        "ANYLOOP_HOME": loop.home,
        "ANYLOOP_MODEL_DIR": settings.model_dir,
        "ANYLOOP_LOG_URL": settings.log_url,
        "ANYLOOP_LOG_LEVEL": "ERROR",
        **{f"ANYLOOP_{name.upper()}": getattr(settings, name) for name in TARGETS},
        **{f"ANYLOOP_TRAINER_{name.upper()}": value for name, value in (FAST | more).items()},
        "OMP_NUM_THREADS": 1,
    }
    return {name: str(value) for name, value in said.items()}


TARGETS = ("policy_target", "critique_target", "decoder_target", "policy_control_target", "critique_control_target")


def say(loop: Loop, count: int = 8) -> None:
    """Feedback, and one event that nobody can read."""
    loop.say(count)
    good = Event.wrap(feedback("f", "r"), key="r1", source="test")
    loop.log.append(FEEDBACK, Event("poison", "test", good.type, good.time, "r1", b"\xff\xff\xff"))


def learned(loop: Loop) -> Learned:
    """Of every version: the feedback it learned from, its weights, its pairs."""
    found: Learned = {}
    for lineage in ("policy", "critique"):
        manifests = [loop.registry.verify(version) for version in loop.registry.versions(lineage)[1:]]
        found[lineage] = [
            (one.metrics["feedback_ids"], one.weights_digest, one.metrics.get("pairs_by_origin")) for one in manifests
        ]
    return found


def died(process: ForkServerProcess) -> bool:
    """Whether it was killed; what else went wrong fails the test."""
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0


@contextmanager
def gate_beside(loop: Loop) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=loop.gate(resamples=100).run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


@pytest.fixture
def undisturbed(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, sequencer: Sequencer) -> Undisturbed:
    """What is learned with these settings when nobody is killed."""

    def find_out(**options: object) -> Learned:
        key = json.dumps(options)
        if key not in _undisturbed:
            with open_sqlite_loop(tmp_path_factory.mktemp("undisturbed"), checkpoint, sequencer) as loop:
                say(loop)
                with gate_beside(loop):
                    assert not died(start_learner(environment(loop, **options)))
                check_once(loop)
                _undisturbed[key] = learned(loop)
        return _undisturbed[key]

    return find_out


def check_once(loop: Loop, letters: Sequence[str] = ("poison",)) -> None:
    """Every piece of feedback stands in one version of each lineage, and every candidate was announced and decided;
    what could not be used stands in the dead letters, once."""
    for lineage, versions in learned(loop).items():
        ids = sorted(name for names, _, _ in versions for name in names)
        assert ids == sorted(f"f{number}" for number in range(loop.sent)), lineage
    said = states(loop.log, "policy")
    candidates = [version for version in loop.registry.versions("policy") if version != BASE]
    assert [version for version in candidates if (version, "CANDIDATE") not in said] == []
    assert sorted(record.event.id for record in loop.log.read(dlq(FEEDBACK))) == list(letters)


TWO_ROUNDS = {"max_feedback": 5}
IN_THE_FIRST_ROUND = {FaultPoint.POLLED, FaultPoint.APPLIED, FaultPoint.COMMITTED, FaultPoint.POLICY_SWAPPED}
QUICK = {"applied:1", "claimed:2", "files_synced:2", "files_renamed:2", "finished:1"}
CASES = [
    pytest.param(fault, marks=[] if fault in QUICK else [pytest.mark.slow])
    for point in OF_THE_LEARNER
    for fault in ([f"{point}:1"] if point in IN_THE_FIRST_ROUND else [f"{point}:1", f"{point}:2"])
]


@pytest.mark.parametrize("fault", CASES)
def test_a_learner_killed_at(fault: str, loop: Loop, undisturbed: Undisturbed) -> None:
    """The second time is in the second round, or where the first round publishes its policy."""
    say(loop)
    if fault == "set_aside:2":
        say(loop, 0)  # more poison
    with gate_beside(loop):
        assert died(start_learner(environment(loop, **TWO_ROUNDS), fault)), "the point was not reached"
        assert not died(start_learner(environment(loop, **TWO_ROUNDS)))
    check_once(loop, ["poison"] * (2 if fault == "set_aside:2" else 1))
    assert learned(loop) == undisturbed(**TWO_ROUNDS)


@pytest.mark.parametrize("fault", [f"{point}:{time}" for point in OF_LATE_FEEDBACK for time in (1, 2)])
def test_a_learner_killed_while_it_sets_late_feedback_aside_at(fault: str, loop: Loop) -> None:
    said = {"late_feedback": "dead_letter", "join_window_h": 1}
    loop.say(2)
    for number in range(3):
        late = feedback(f"late{number}", "r0", critique="no", created=10**8)
        loop.log.append(FEEDBACK, Event.wrap(late, key="r0", source="test", id=late.feedback_id))
    with gate_beside(loop):
        assert died(start_learner(environment(loop, **said), fault)), "the point was not reached"
        assert not died(start_learner(environment(loop, **said)))
    check_once(loop, ["late0", "late1", "late2"])


@pytest.mark.slow
@pytest.mark.parametrize("point", OF_PPO)
def test_a_learner_killed_in_a_ppo_round_at(point: FaultPoint, loop: Loop, undisturbed: Undisturbed) -> None:
    say(loop)
    with gate_beside(loop):
        assert died(start_learner(environment(loop, algorithm="ppo"), point))
        assert not died(start_learner(environment(loop, algorithm="ppo")))
    check_once(loop)
    assert learned(loop) == undisturbed(algorithm="ppo")
    assert not [version for version in loop.services.resident if "rollout" in version]


@pytest.mark.parametrize(
    "point", [pytest.param(one, marks=[] if "recorded" in one else [pytest.mark.slow]) for one in OF_THE_GATE]
)
def test_a_gate_killed_at(point: FaultPoint, loop: Loop, undisturbed: Undisturbed) -> None:
    say(loop)
    learner, gate = start_learner(environment(loop)), start_gate(environment(loop), point)
    try:
        assert died(gate)
        gate = start_gate(environment(loop))
        assert not died(learner)
    finally:
        gate.kill()
        gate.join()
    check_once(loop)
    assert learned(loop) == undisturbed()
    decided = [state for version, state in states(loop.log, "policy") if version == "policy-000001"]
    assert decided == ["CANDIDATE", "PROMOTED"]


def test_every_point_is_in_one_of_the_lists_above() -> None:
    tried = {case.values[0].split(":")[0] for case in CASES}
    assert {*tried, *_OTHERS} == set(FaultPoint)


def test_a_name_that_is_no_fault_point_is_refused() -> None:
    with pytest.raises(ValueError, match="polling"):
        arm("polling")
    arm("")


@pytest.mark.slow
def test_the_program_itself_dies_where_the_environment_says(loop: Loop) -> None:
    said = os.environ | environment(loop) | {VARIABLE: "applied"}
    say(loop)
    done = subprocess.run([sys.executable, "-m", "trainer", "--once"], env=said, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
