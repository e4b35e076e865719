"""The policy model as a program: the request protocol of the hosts on top of the engine.

The critique model is the same program with weights of another lineage. A new program holds no weights: the service
loads and activates the promoted version, so a restarted engine never answers with weights nobody chose.

Requests (`op`):
- `generate`: `request_id`, `prompt` (token ids), `sampling`, `modalities` (None: all), `version` ("" or a pin), `key`
  (who asks). Answers: any number of `{tokens, logprobs, version}` (int32 and float32 arrays, `top`, the alternatives,
  beside them where asked for), then `{finished, version_spans, sampling, stopped_by}`, where `sampling` has the
  defaults and the seed filled in.
- `attach` (`session`), `generate` with `session` and `stream`, `cancel` (`session`, `stream`): see `sessions`.
- `score`: `sequences` (each `prompt` and `output` token ids, `modalities`, `max_tokens`), `grammar`, `version`. One
  answer, `{logprobs, version}`: a float32 array for each sequence.
- `load` (`version`, `path`, `digest`, `urgent`), `activate` (`version`, `mode`), `unload` (`version`), `status`: one
  answer each.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from anyloop.config import Settings
from services.hosts.interface import HostError
from services.hosts.program import Cancel, Send, answer_of
from services.policy.engine import End, Engine, EngineRunner, Request
from services.policy.engine.forward import ForwardOptions
from services.policy.engine.step_gaps import StepGaps
from services.policy.outlets import OwnAnswers, Session
from services.policy.requests import RequestReader
from services.policy.scoring import Scorer
from services.policy.sender import Sender
from services.policy.sessions import Sessions
from services.policy.weights_ops import WeightsOperations, status_of


class PolicyProgram:
    def __init__(self, model_dir: Path, settings: Settings, name: str = "policy") -> None:
        """`model_dir` gives the tokenizer, the token layout and the sampling defaults; weights come by `load`."""
        self._reader = RequestReader(Path(model_dir), settings.engine_max_tokens)
        layout = self._reader.sequencer.layout

        def new_engine() -> Engine:
            return Engine(
                settings.engine_slots,
                settings.engine_max_tokens,
                settings.engine_queue,
                self._reader.masks,
                end_token=layout.end,
                prefix_rows=settings.engine_prefix_rows,
                read_seconds=settings.engine_read_ms / 1000,
            )

        self._control = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-control")
        self._sender = Sender(name, settings.stream_interval_ms / 1000, self._cancel)
        self._sessions = Sessions(self._cancel)
        self._runner = EngineRunner(new_engine(), self._sender.step, name=f"{name}-engine", rebuild=new_engine)
        self._weights = WeightsOperations(
            self._runner,
            name,
            layout,
            self._reader.vocabulary,
            settings.swap_mode,
            settings.engine_resident_versions,
            ForwardOptions(settings.engine_max_tokens, settings.engine_dtype, settings.engine_compile),
        )
        self._scorer = Scorer(self._runner, self._reader.masks, settings.engine_max_tokens, name)
        self._runner.start()

    @property
    def gaps(self) -> StepGaps:
        """How evenly the decode steps of this program follow each other."""
        return self._runner.gaps

    def submit(self, request: dict[str, Any], send: Send) -> Cancel:
        operation = request.get("op")
        if operation == "generate":
            return self._generate(request, send)
        if operation == "score":
            return self._score(request, send)
        if operation == "status":  # never behind a load
            status = self._runner.call(status_of)
            status.add_done_callback(lambda future: send(answer_of(future.result), True))
            return lambda: None
        if operation in ("attach", "cancel"):
            return self._in_session(request, send)
        operations = {"load": self._weights.load, "activate": self._weights.activate, "unload": self._weights.unload}
        action = operations.get(str(operation))
        if action is None:
            known = ", ".join(["generate", "score", "attach", "cancel", "status", *operations])
            send(HostError("INVALID_ARGUMENT", f"unknown op {operation!r}; known: {known}").to_payload(), True)
        else:
            self._control.submit(lambda: send(answer_of(lambda: action(request)), True))
        return lambda: None

    def close(self) -> None:
        self._control.shutdown(wait=True, cancel_futures=True)
        self._scorer.close()
        self._runner.close()
        self._sender.close()
        self._sessions.close()

    def _generate(self, payload: dict[str, Any], send: Send) -> Cancel:
        session: Session | None = None
        try:
            request = self._reader.request(payload)
            if "session" in payload:
                session, stream = self._sessions.find(payload)
                session.open(stream, request)
        except (TypeError, ValueError) as error:
            send(HostError("INVALID_ARGUMENT", f"malformed generate request: {error}").to_payload(), True)
            return lambda: None
        except HostError as error:
            send(error.to_payload(), True)
            return lambda: None
        self._sender.open(request, session or OwnAnswers(send))
        self._start(request)
        if session is None:
            return lambda: self._cancel([request])
        if session.request(stream) is not request:  # it ended, or its session did before the engine knew of it
            self._cancel([request])
        send({}, True)
        return lambda: None

    def _start(self, request: Request) -> None:
        def start(engine: Engine) -> None:
            try:
                engine.submit(request)
            except HostError as error:
                self._sender.step([End(request, error=error)])

        def started(future: Future[None]) -> None:
            error = future.exception()
            if error is not None:  # the engine has stopped
                refused = error if isinstance(error, HostError) else HostError("INTERNAL", repr(error))
                self._sender.step([End(request, error=refused)])

        self._runner.call(start).add_done_callback(started)

    def _in_session(self, payload: dict[str, Any], send: Send) -> Cancel:
        try:
            if payload["op"] == "attach":
                return self._sessions.attach(payload, send)
            session, stream = self._sessions.find(payload)
        except HostError as error:
            send(error.to_payload(), True)
            return lambda: None
        request = session.request(stream)
        if request is not None:
            self._cancel([request])
        send({}, True)
        return lambda: None

    def _score(self, payload: dict[str, Any], send: Send) -> Cancel:
        try:
            return self._scorer.submit(payload, send)
        except (TypeError, ValueError, KeyError) as error:
            refusal = HostError("INVALID_ARGUMENT", f"malformed score request: {error!r}")
        except HostError as error:
            refusal = error
        send(refusal.to_payload(), True)
        return lambda: None

    def _cancel(self, requests: list[Request]) -> None:
        live = [request for request in requests if self._sender.is_live(request)]
        if live:
            self._runner.call(lambda engine: _cancel_all(engine, live))


def _cancel_all(engine: Engine, requests: list[Request]) -> None:
    for request in requests:
        engine.cancel(request)
