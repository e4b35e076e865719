"""The policy model as a program: the request protocol of the hosts on top of the engine.

The critique model is the same program with weights of another lineage. A new program holds no weights: the service
loads and activates the promoted version, so a restarted engine never answers with weights nobody chose.

Requests (`op`):
- `generate`: `request_id`, `prompt` (token ids), `sampling` (`temperature`, `top_p`, `top_k`, `seed`, `max_tokens`,
  `stop`), `modalities` (None: all), `version` ("" or a pin). Answers: any number of `{tokens, logprobs, version}`, then
  `{finished, version_spans, sampling, stopped_by}`, where `sampling` has the defaults and the seed filled in.
- `load` (`version`, `path`, `digest`), `activate` (`version`, `mode`), `unload` (`version`), `status`: one answer each.
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
from services.policy.requests import RequestReader
from services.policy.sender import Sender
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
        self._sender = Sender(name, self._cancel)
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
        self._runner.start()

    def submit(self, request: dict[str, Any], send: Send) -> Cancel:
        operation = request.get("op")
        if operation == "generate":
            return self._generate(request, send)
        if operation == "status":  # never behind a load
            status = self._runner.call(status_of)
            status.add_done_callback(lambda future: send(answer_of(future.result), True))
            return lambda: None
        operations = {"load": self._weights.load, "activate": self._weights.activate, "unload": self._weights.unload}
        action = operations.get(str(operation))
        if action is None:
            known = ", ".join(["generate", "status", *operations])
            send(HostError("INVALID_ARGUMENT", f"unknown op {operation!r}; known: {known}").to_payload(), True)
        else:
            self._control.submit(lambda: send(answer_of(lambda: action(request)), True))
        return lambda: None

    def close(self) -> None:
        self._control.shutdown(wait=True, cancel_futures=True)
        self._runner.close()
        self._sender.close()

    def _generate(self, payload: dict[str, Any], send: Send) -> Cancel:
        try:
            request = self._reader.request(payload)
        except (TypeError, ValueError) as error:
            send(HostError("INVALID_ARGUMENT", f"malformed generate request: {error}").to_payload(), True)
            return lambda: None
        except HostError as error:
            send(error.to_payload(), True)
            return lambda: None
        self._sender.open(request, send)

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
        return lambda: self._cancel(request)

    def _cancel(self, request: Request) -> None:
        if self._sender.is_live(request):
            self._runner.call(lambda engine: engine.cancel(request))
