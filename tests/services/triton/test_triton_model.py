"""The wrapper in Triton's stub process, with a stand-in for the module that exists only there."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from services.hosts.payload import TARGET, TENSOR, pack, unpack

FINAL = 1


class Sender:
    """Keeps `(payload, flags)`; the next `fails` answers cannot be sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[dict[str, Any] | None, int]] = []
        self.fails = 0

    def send(self, response: Any = None, flags: int = 0) -> None:
        if response is not None and self.fails:
            self.fails -= 1
            raise RuntimeError("no shared memory")
        self.sent.append((None if response is None else unpack(response[0].tobytes()), flags))

    def is_cancelled(self) -> bool:
        return False


class Program:
    """Starts whatever it is asked for and keeps how to answer."""

    def __init__(self) -> None:
        self.send: Callable[[dict[str, Any], bool], None]
        self.cancelled = threading.Event()

    def submit(self, request: dict[str, Any], send: Callable[[dict[str, Any], bool], None]) -> Callable[[], None]:
        self.send = send
        return self.cancelled.set


@pytest.fixture
def program() -> Program:
    return Program()


@pytest.fixture
def model(program: Program, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A model with its poller running, and without the rest of `initialize`."""
    backend = ModuleType("triton_python_backend_utils")
    backend.__dict__.update(
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
        Tensor=lambda name, data: data,
        InferenceResponse=lambda tensors: tensors,
        get_input_tensor_by_name=lambda request, name: request.tensors[name],
    )
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    module = importlib.import_module("services.triton.model")
    monkeypatch.delitem(sys.modules, "services.triton.model")
    model = module.TritonPythonModel()
    model._programs, model._open = {"policy": program}, {}
    model._stopping, model._wake = threading.Event(), threading.Event()
    model._poller = threading.Thread(target=model._poll_cancelled)
    model._poller.start()
    yield model
    model._stopping.set()
    model._wake.set()
    model._poller.join(5.0)
    assert not model._poller.is_alive()


def ask(model: Any) -> Sender:
    sender = Sender()
    tensor = SimpleNamespace(as_numpy=lambda: SimpleNamespace(tobytes=lambda: pack({TARGET: "policy"})))
    model.execute([SimpleNamespace(get_response_sender=lambda: sender, tensors={TENSOR: tensor})])
    return sender


@pytest.mark.parametrize("fails", [1, 2])
def test_an_answer_that_cannot_be_sent_ends_the_request_for_client_and_program(
    model: Any, program: Program, fails: int
) -> None:
    sender = ask(model)
    program.send({"attached": "a"}, False)
    sender.fails = fails
    with pytest.raises(RuntimeError, match="no shared memory"):
        program.send({"tokens": []}, False)
    assert program.cancelled.wait(5.0)
    program.send({"tokens": []}, False)
    first, (last, flags) = sender.sent
    assert (first, flags) == (({"attached": "a"}, 0), FINAL)
    if fails == 1:  # clients of Triton do not hear of a bare flag
        assert last is not None
        assert last["error"]["code"] == "UNAVAILABLE"
    else:
        assert last is None


def test_a_request_that_ended_well_is_not_cancelled(model: Any, program: Program) -> None:
    sender = ask(model)
    assert model._open
    program.send({"finished": "stop"}, True)
    limit = time.monotonic() + 5.0
    while model._open:
        assert time.monotonic() < limit
        time.sleep(0.005)
    assert not program.cancelled.is_set()
    assert sender.sent == [({"finished": "stop"}, FINAL)]
