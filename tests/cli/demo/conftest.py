import numpy as np
import pytest

from anyloop.cli.demo.evaluation import Evaluation, scores_of
from anyloop.cli.demo.results import DemoPlan, Results, Round, SideBySide, Swap
from anyloop.cli.demo.traffic import Count
from anyloop.world import SUBTASKS, tasks
from tests.cli.demo.exchanges import right, wrong


@pytest.fixture(scope="session")
def results() -> Results:
    """Two rounds: one promoted a version that repairs half of each subtask's prompts, one was rejected."""
    rng = np.random.default_rng(0)
    asked = {subtask: [tasks.sample(subtask, "train", rng) for _ in range(2)] for subtask in SUBTASKS}
    before = [wrong(task) for of_subtask in asked.values() for task in of_subtask]
    after = [say(task, "policy-000001") for a, b in asked.values() for say, task in ((right, a), (wrong, b))]
    swap = Swap("policy-000001", 100.0, 100.5, 0.0031, Count(served=9, failed=0))
    second = Evaluation(("policy-000001",), scores_of(after), tuple(after))
    return Results(
        plan=DemoPlan(rounds=2, prompts=16, eval_prompts=2),
        before=Evaluation(("policy-000000",), scores_of(before), tuple(before)),
        rounds=(
            Round(
                1,
                16,
                0,
                16,
                "policy-000001",
                "promoted",
                "better",
                {"ask": 3.0, "learn": 9.0},
                {"metrics": {"feedback": 16}},
                {},
                swap,
                second,
            ),
            Round(
                2,
                16,
                8,
                16,
                "policy-000002",
                "rejected",
                "T2A fell <b>",
                {"learn": float("nan")},
                {"metrics": {"feedback": 15}},
                {},
            ),
        ),
        reasked=tuple(SideBySide(b, "Make it <red>.", a) for b, a in zip(before, after, strict=True)),
        traffic=Count(served=120, failed=0),
        seconds={"start": 20.0, "demo": 200.0, "total": 225.0},
        peak_memory_bytes=3 * 2**30,
        environment={"host": "triton"},
    )
