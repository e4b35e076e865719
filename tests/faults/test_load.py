import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from anyloop.cli.rest import GatewayClient, RequestFailed
from tests.faults import load as load_module
from tests.faults.load import Load


class _Gateway:
    """Streams two chunks unless told otherwise, answers whole, and takes feedback at the second try."""

    def __init__(self) -> None:
        self.chunk: Callable[[], dict[str, Any]] = lambda: {"id": "r1", "choices": []}
        self.end: Exception | None = None
        self.tries = 0

    def chat_stream(self, content: Any, **options: Any) -> Iterator[dict[str, Any]]:
        yield self.chunk()
        if self.end:
            raise self.end
        yield {"id": "r1", "choices": [{"finish_reason": "stop", "delta": {}}]}

    def feedback(self, statement: dict[str, Any]) -> dict[str, Any]:
        self.tries += 1
        if self.tries == 1:
            raise RequestFailed(503, "the outbox is full")
        return {"id": "f1"}


@pytest.fixture
def gateway() -> _Gateway:
    return _Gateway()


@pytest.fixture
def load(gateway: _Gateway, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.setattr(load_module, "_RETRY_S", 0.0)
    made = Load("http://127.0.0.1:1", users=1, pace_s=0.001)
    monkeypatch.setattr(made, "_client", gateway)
    return made


def _ask_streamed(load: Load) -> str:
    task = load_module.tasks.sample(load_module.SUBTASKS[0], "train", load_module.np.random.default_rng(0))
    return load._ask(task, 1, stream=True)[0]


@pytest.mark.parametrize(
    ("error", "status"),
    [(RequestFailed(500, "the decoder went away"), "broken stream"), (RequestFailed(0, "connection lost"), "cut")],
)
def test_a_stream_that_ends_early_keeps_its_id_for_the_audit_and_gets_no_feedback(
    load: Load, gateway: _Gateway, error: Exception, status: str
) -> None:
    gateway.end = error
    assert _ask_streamed(load) == ""
    (attempt,) = load.attempts
    assert (attempt.id, attempt.status, attempt.ambiguous) == ("r1", status, True)


def test_every_try_of_a_statement_carries_its_response_and_its_key(load: Load) -> None:
    load._say("r1", keyed=True, read_back=False)
    refused, taken = load.attempts
    assert (refused.status, taken.status) == ("503", "200")
    assert refused.about == taken.about == "r1"
    assert refused.key == taken.key != ""


def test_a_user_whom_the_answer_bewilders_is_missed(load: Load, gateway: _Gateway) -> None:
    gateway.chunk = dict  # no id
    with load:
        deadline = time.monotonic() + 10
        while not load.broken and time.monotonic() < deadline:
            time.sleep(0.01)
    (why,) = load.broken
    assert why.startswith("user-0 went away: ")


def test_a_refused_connection_is_told_from_one_that_was_cut() -> None:
    client = GatewayClient("http://127.0.0.1:1")
    with client, pytest.raises(RequestFailed) as failed:
        client.feedback({})
    assert load_module.status_of(failed.value) == "refused"
    lost = RequestFailed(0, "lost")
    lost.__cause__ = httpx.ReadError("lost")
    assert load_module.status_of(lost) == "cut"
