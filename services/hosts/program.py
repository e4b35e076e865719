"""What a model host runs: a program takes requests and sends answers, from threads of its own.

Triton's `model.py` and the in-process host wrap the same programs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from services.hosts.interface import HostError

if TYPE_CHECKING:
    from anyloop.config import Settings

log = logging.getLogger(__name__)

# Called with each answer and whether it is the last one. Every request gets exactly one last answer.
Send = Callable[[dict[str, Any], bool], None]
Cancel = Callable[[], None]


class Program(Protocol):
    def submit(self, request: dict[str, Any], send: Send) -> Cancel:
        """Starts a request and returns at once. Errors go to `send` as `{"error": {...}}`.

        The result cancels the request; after its end that does nothing.
        """
        ...

    def close(self) -> None:
        """Ends what runs and frees the threads."""
        ...


class Handler(Protocol):
    def handle(self, request: dict[str, Any]) -> dict[str, Any]: ...


class CallProgram:
    """Runs a handler that answers once, on one thread: codecs are short, a second thread would only share the core."""

    def __init__(self, handler: Handler, name: str) -> None:
        self._handler = handler
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    def submit(self, request: dict[str, Any], send: Send) -> Cancel:
        try:
            future = self._pool.submit(self._run, request, send)
        except RuntimeError:
            send(HostError("UNAVAILABLE", "the model is being unloaded").to_payload(), True)
            return lambda: None

        def cancel() -> None:
            if future.cancel():
                send(HostError("CANCELLED", "cancelled before it began").to_payload(), True)

        return cancel

    def _run(self, request: dict[str, Any], send: Send) -> None:
        send(answer_of(lambda: self._handler.handle(request)), True)

    def close(self) -> None:
        self._pool.shutdown(wait=True)


def answer_of(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `action`, or the error payload of what it raised."""
    try:
        return action()
    except HostError as error:
        return error.to_payload()
    except (ValueError, TypeError, KeyError) as error:
        return HostError("INVALID_ARGUMENT", f"{type(error).__name__}: {error}").to_payload()
    except Exception as error:
        log.exception("a model request failed")
        return HostError("INTERNAL", f"{type(error).__name__}: {error}").to_payload()


def open_program(model: str, settings: Settings) -> Program:
    """The program behind one of the five model names. Raises HostError or OSError when its files are not there."""
    if model in ("policy", "critique"):
        from services.policy.program import PolicyProgram

        return PolicyProgram(settings.model_dir, settings, name=model)
    from services.decoders.program import DecoderProgram

    modality = model.removeprefix("decoder_")
    return CallProgram(DecoderProgram(settings.model_dir / "codecs" / modality), name=model)
