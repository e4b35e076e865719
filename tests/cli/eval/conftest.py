"""`anyloop eval` in this process, in front of a gateway and a critic of the test's own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from anyloop.cli.app import app
from anyloop.cli.demo.evaluation import questions
from anyloop.evaluation.critic import Part, Turn, Verdict
from tests.cli.eval.gateway import WorldGateway

Evaluate = Callable[..., Result]


class FakeCritic:
    """Approves of answers with a picture or with the word red."""

    def __init__(self, target: str, media: Any, **options: Any) -> None:
        self.target = target

    def __enter__(self) -> "FakeCritic":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def judge(self, turns: Sequence[Turn], response: Sequence[Part]) -> Verdict:
        right = any(not isinstance(part, str) or "red" in part for part in response)
        return Verdict(right, "This is correct." if right else "It should be red.", "critique-000002")

    def agree(self, one: Sequence[Part], other: Sequence[Part]) -> bool:
        return self.judge([("user", one)], other).right


@pytest.fixture
def gateway() -> WorldGateway:
    """Answers the first three prompts of each subtask rightly."""
    return WorldGateway([task for task, _ in questions("heldout", 3, 0)])


@pytest.fixture
def evaluate(home: Path, runner: CliRunner, gateway: WorldGateway, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """Runs the command with the arguments given."""
    monkeypatch.setenv("ANYLOOP_POLICY_CONTROL_TARGET", "127.0.0.1:1")  # no replica of this machine is meant
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("anyloop.cli.rest.GatewayClient", lambda url, *, key="": gateway)
    monkeypatch.setattr("anyloop.evaluation.critic.Critic", FakeCritic)
    return lambda *arguments: runner.invoke(app, ["eval", *map(str, arguments)])
