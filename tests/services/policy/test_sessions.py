"""Many streams on one long-lived request, at the level of the program: what goes in, what comes out, what ends it."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anyloop.config import Settings
from services.hosts.interface import HostError
from services.hosts.payload import pack, unpack
from services.hosts.program import Cancel
from services.policy.program import PolicyProgram
from services.policy.sessions import Sessions
from tests.models.random_omni import build_random_omni

Answer = tuple[dict[str, Any], bool]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyProgram]:
    directory = build_random_omni(tmp_path_factory.mktemp("model") / "v0")
    program = PolicyProgram(directory, Settings(engine_slots=4, engine_max_tokens=512, engine_queue=8))
    ask(program, {"op": "load", "version": "v0", "path": str(directory)})
    ask(program, {"op": "activate", "version": "v0"})
    yield program
    program.close()


class Client:
    """What a host is to the program: it attaches, and keeps what comes."""

    def __init__(self, program: PolicyProgram, name: str) -> None:
        self._program = program
        self.messages: queue.Queue[Answer] = queue.Queue()
        self.name = name
        self.detach: Cancel = program.submit({"op": "attach", "session": name}, self._keep)
        self.tokens: dict[int, list[int]] = {}
        self.ends: dict[int, dict[str, Any]] = {}

    def _keep(self, payload: dict[str, Any], final: bool) -> None:
        self.messages.put((unpack(pack(payload)), final))  # as it travels

    def generate(self, stream: Any, seed: int = 0, max_tokens: int = 20, **more: Any) -> dict[str, Any]:
        return ask(self._program, request(seed, max_tokens, session=self.name, stream=stream, **more))

    def read(self) -> dict[str, Any]:
        message, _ = self.messages.get(timeout=10.0)
        begin = 0
        for stream, count in zip(message.get("streams", ()), message.get("counts", ()), strict=True):
            self.tokens.setdefault(stream, []).extend(message["tokens"][begin : begin + count].tolist())
            begin += int(count)
        assert begin == len(message.get("tokens", ())) == len(message.get("logprobs", ()))
        self.ends.update(dict(message.get("ends", ())))
        return message

    def read_until(self, *streams: int) -> None:
        while not set(streams) <= set(self.ends):
            self.read()


def ask(program: PolicyProgram, payload: dict[str, Any]) -> dict[str, Any]:
    answers: queue.Queue[Answer] = queue.Queue()
    program.submit(payload, lambda answer, final: answers.put((answer, final)))
    answer, final = answers.get(timeout=20.0)
    assert final
    return answer


def request(seed: int = 0, max_tokens: int = 20, **more: Any) -> dict[str, Any]:
    sampling = {"temperature": 1.0, "seed": seed, "max_tokens": max_tokens}
    return {"op": "generate", "prompt": [1, 2, 3], "sampling": sampling, "modalities": ["text"], **more}


def running(program: PolicyProgram) -> int:
    status = ask(program, {"op": "status"})
    return int(status["requests_running"] + status["requests_waiting"])


def until_idle(program: PolicyProgram) -> None:
    until = time.monotonic() + 5.0
    while running(program):
        assert time.monotonic() < until
        time.sleep(0.005)


def test_streams_of_a_session_say_what_they_would_say_alone(program: PolicyProgram) -> None:
    alone: list[list[int]] = []
    for seed in range(3):
        answers: queue.Queue[Answer] = queue.Queue()
        program.submit(request(seed), lambda answer, final, answers=answers: answers.put((answer, final)))  # type: ignore[misc]
        tokens, final = [], False
        while not final:
            answer, final = answers.get(timeout=10.0)
            tokens.extend(answer["tokens"].tolist() if "tokens" in answer else [])
        alone.append(tokens)
    client = Client(program, "alike")
    assert client.read() == {"attached": "alike"}
    assert [client.generate(stream, seed=stream) for stream in range(3)] == [{}, {}, {}]
    client.read_until(0, 1, 2)
    assert [client.tokens[stream] for stream in range(3)] == alone
    assert client.ends[1]["version_spans"] == [["v0", 0, len(alone[1])]]
    client.detach()


def test_alternatives_travel_with_the_streams_that_asked(program: PolicyProgram) -> None:
    client = Client(program, "top")
    client.read()
    sampling = {"temperature": 1.0, "seed": 1, "max_tokens": 4, "top_logprobs": 2}
    client.generate(1, sampling=sampling)
    client.generate(2, max_tokens=4)
    found: dict[int, list[Any]] = {}
    while len(client.ends) < 2:
        message = client.read()
        for stream, top in zip(message.get("streams", ()), message.get("top", ()), strict=False):
            found.setdefault(stream, []).extend(top or [])
    assert [len(pairs) for pairs in found[1]] == [2] * len(client.tokens[1])
    assert not found.get(2)
    client.detach()


def test_cancelling_a_stream_ends_it_and_no_other(program: PolicyProgram) -> None:
    client = Client(program, "cut")
    client.read()
    client.generate(1, max_tokens=500)
    client.generate(2, max_tokens=60)
    while 1 not in client.tokens:
        client.read()
    assert ask(program, {"op": "cancel", "session": "cut", "stream": 1}) == {}
    client.read_until(1, 2)
    assert client.ends[1]["finished"] == "cancelled"
    assert client.ends[2]["finished"] in ("stop", "length")
    assert ask(program, {"op": "cancel", "session": "cut", "stream": 1}) == {}  # it has ended: nothing to do
    client.detach()


def test_all_that_runs_in_a_session_ends_with_it(program: PolicyProgram) -> None:
    client = Client(program, "gone")
    client.read()
    for stream in range(8):  # four run, four wait
        client.generate(stream, seed=stream, max_tokens=500)
    while not client.tokens:
        client.read()
    client.detach()
    until_idle(program)
    while True:
        message, final = client.messages.get(timeout=5.0)
        if final:
            break
    assert message["error"]["code"] == "CANCELLED"
    assert client.messages.empty()
    assert client.generate(9)["error"]["code"] == "UNAVAILABLE"


def test_a_refusal_by_the_engine_is_the_end_of_its_stream(program: PolicyProgram) -> None:
    client = Client(program, "full")
    client.read()
    for stream in range(20):
        client.generate(stream, max_tokens=500)
    while not client.ends:
        client.read()
    refused = next(iter(client.ends.values()))["error"]
    assert (refused["code"], refused["retry_after_s"]) == ("RESOURCE_EXHAUSTED", 1.0)
    client.detach()
    until_idle(program)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (request(session="nowhere", stream=1), "UNAVAILABLE"),
        ({"op": "cancel", "session": "nowhere", "stream": 1}, "UNAVAILABLE"),
        (request(session="open"), "INVALID_ARGUMENT"),
        (request(session="open", stream="one"), "INVALID_ARGUMENT"),
        (request(session="open", stream=1, prompt=[]), "INVALID_ARGUMENT"),
        ({"op": "attach"}, "INVALID_ARGUMENT"),
        ({"op": "attach", "session": "open"}, "INVALID_ARGUMENT"),
    ],
)
def test_what_names_no_session_or_stream_is_refused(program: PolicyProgram, payload: dict[str, Any], code: str) -> None:
    client = Client(program, "open")
    client.read()
    answer = ask(program, payload)
    while answer == {}:  # accepted: the engine refuses it, in the session
        client.read()
        answer = next(iter(client.ends.values()), {})
    assert answer["error"]["code"] == code
    client.detach()


def test_a_stream_number_is_free_again_when_its_stream_has_ended(program: PolicyProgram) -> None:
    client = Client(program, "again")
    client.read()
    client.generate(1, max_tokens=500)
    assert "taken" in client.generate(1)["error"]["message"]
    ask(program, {"op": "cancel", "session": "again", "stream": 1})
    client.read_until(1)
    assert client.generate(1, max_tokens=3) == {}
    client.ends.clear()
    client.read_until(1)
    client.detach()


def test_closing_the_program_tells_every_stream_and_the_session(tmp_path: Path) -> None:
    directory = build_random_omni(tmp_path / "v0")
    program = PolicyProgram(directory, Settings(engine_slots=2, engine_max_tokens=512))
    ask(program, {"op": "load", "version": "v0", "path": str(directory)})
    ask(program, {"op": "activate", "version": "v0"})
    client = Client(program, "last")
    client.read()
    client.generate(1, max_tokens=500)
    while not client.tokens:
        client.read()
    program.close()
    client.read_until(1)
    assert client.ends[1]["error"]["code"] == "UNAVAILABLE"
    message, final = client.messages.get(timeout=5.0)
    assert (message["error"]["code"], final) == ("UNAVAILABLE", True)


def test_a_session_that_could_not_be_told_that_it_is_attached_is_not_there() -> None:
    def broken(payload: dict[str, Any], final: bool) -> None:
        raise RuntimeError("the pipe is broken")

    sessions = Sessions(lambda requests: None)
    with pytest.raises(RuntimeError):
        sessions.attach({"session": "s"}, broken)
    with pytest.raises(HostError, match="attach again"):
        sessions.find({"session": "s", "stream": 0})
    sessions.attach({"session": "s"}, lambda payload, final: None)
    assert sessions.find({"session": "s", "stream": 0})[1] == 0
