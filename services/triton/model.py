"""What runs inside Triton's Python backend: a program of this repository behind Triton's request and response calls.

Only Triton can import this module: `triton_python_backend_utils` exists in its stub processes alone.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from anyloop.config import Settings
from anyloop.telemetry import tracing
from services.hosts.interface import HostError
from services.hosts.payload import TARGET, TENSOR, pack, unpack
from services.hosts.program import Cancel, Program, open_program

CANCEL_POLL_SECONDS = 0.02
_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

log = logging.getLogger(__name__)


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        torch.set_num_threads(1)  # two threads of one process fight for the cores that the others need
        logging.basicConfig(level=logging.INFO, format=f"{args['model_name']}: %(levelname)s %(message)s")
        names = json.loads(args["model_config"])["parameters"]["programs"]["string_value"].split(",")
        settings = Settings()
        tracing.configure("engine", settings)
        self._programs: dict[str, Program] = {name: open_program(name, settings) for name in names}
        self._open: dict[_Answer, Cancel] = {}
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._poller = threading.Thread(target=self._poll_cancelled, name="cancel-poller", daemon=True)
        self._poller.start()

    def execute(self, requests: list[Any]) -> None:
        """Starts every request; answers go out through the response senders, from the program's threads."""
        for request in requests:
            answer = _Answer(request.get_response_sender())
            try:
                tensor = pb_utils.get_input_tensor_by_name(request, TENSOR)
                message = unpack(tensor.as_numpy().tobytes())
                cancel = self._program(message.pop(TARGET, "")).submit(message, answer.send)
            except HostError as error:
                answer.send(error.to_payload(), True)
            except ValueError as error:
                answer.send(HostError("INVALID_ARGUMENT", str(error)).to_payload(), True)
            except Exception as error:
                log.exception("a request could not be started")
                answer.send(HostError("INTERNAL", repr(error)).to_payload(), True)
            else:
                if not answer.ended or answer.broken:
                    self._open[answer] = cancel
                    self._wake.set()

    def _program(self, name: str) -> Program:
        if name in self._programs:
            return self._programs[name]
        raise HostError("NOT_FOUND", f"model {name!r} is not served here; served: {', '.join(self._programs)}")

    def finalize(self) -> None:
        # Once all is sent, taking torch's modules apart object by object would hold Triton's exit up for 5-7 s.
        atexit.register(os._exit, 0)
        self._stopping.set()
        self._wake.set()
        for program in self._programs.values():
            program.close()
        self._poller.join(5.0)
        for answer in list(self._open):
            answer.send(HostError("UNAVAILABLE", "the model is being unloaded").to_payload(), True)
        tracing.flush()

    def _poll_cancelled(self) -> None:
        """Triton does not tell a model that a client has gone: it must be asked, and not on the engine's thread."""
        while not self._stopping.is_set():
            if not self._open:
                self._wake.wait()
                self._wake.clear()
            for answer, cancel in list(self._open.items()):
                try:
                    gone = answer.cancelled()
                except Exception:  # one sender's trouble must not end the cancellation of all the others
                    log.exception("a request cannot be asked whether it was cancelled")
                    gone = True
                if gone or answer.ended:
                    del self._open[answer]
                if gone or answer.broken:  # what the program does for it reaches nobody
                    cancel()
            self._stopping.wait(CANCEL_POLL_SECONDS)


class _Answer:
    """The response sender of one request; sends its final flag once, whatever happens to the payload."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self._lock = threading.Lock()
        self.ended = False
        self.broken = False  # ended by an answer that could not be sent: the program believes that it goes on

    def send(self, payload: dict[str, Any], final: bool) -> None:
        with self._lock:
            if self.ended:
                return
            self.ended = final
            try:
                self._respond(payload, final)
            except Exception as error:
                self.broken = self.ended = True
                self._give_up(HostError("UNAVAILABLE", f"an answer could not be sent: {error!r}"))
                raise

    def _respond(self, payload: dict[str, Any], final: bool) -> None:
        tensor = pb_utils.Tensor(TENSOR, np.frombuffer(pack(payload), dtype=np.uint8))
        self._sender.send(pb_utils.InferenceResponse([tensor]), flags=_FINAL if final else 0)

    def _give_up(self, error: HostError) -> None:
        """A request without its final flag would pin this instance for ever; Triton keeps a bare one from clients."""
        try:
            self._respond(error.to_payload(), True)
        except Exception:
            self._sender.send(flags=_FINAL)

    def cancelled(self) -> bool:
        with self._lock:
            return not self.ended and bool(self._sender.is_cancelled())
