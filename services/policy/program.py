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

import json
import logging
import queue
import random
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from anyloop.config import Settings
from anyloop.sequence import Sequencer
from services.hosts.interface import HostError
from services.hosts.program import Cancel, Send, answer_of
from services.policy.engine import Emission, Engine, EngineRunner, Request, Sampling, load_checkpoint
from services.policy.engine.answer_masks import MaskTable
from services.policy.engine.engine import SwapMode
from services.policy.engine.stop_strings import StopStrings

log = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 128  # when neither the request nor generation_config.json says
_MAX_STOP_STRINGS = 16


class PolicyProgram:
    def __init__(self, model_dir: Path, settings: Settings, name: str = "policy") -> None:
        """`model_dir` gives the tokenizer, the token layout and the sampling defaults; weights come by `load`."""
        self._name = name
        self._sequencer = Sequencer.from_pretrained(model_dir)
        self._defaults = _generation_defaults(Path(model_dir))
        self._swap_mode = settings.swap_mode
        layout = self._sequencer.layout
        vocabulary = int(json.loads((Path(model_dir) / "config.json").read_text()).get("vocab_size", 0))
        self._masks = MaskTable(layout, vocabulary)
        self._max_tokens = settings.engine_max_tokens
        engine = Engine(
            settings.engine_slots, settings.engine_max_tokens, settings.engine_queue, self._masks, end_token=layout.end
        )
        self._sends: dict[Request, Send] = {}  # where the answers of every request that has not ended go
        self._steps: queue.SimpleQueue[list[Emission] | None] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send_steps, name=f"{name}-sender", daemon=True)
        self._control = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-control")
        self._runner = EngineRunner(engine, self._steps.put, name=f"{name}-engine")
        self._runner.start()
        self._sender.start()

    # -- the program protocol ------------------------------------------------------------------------------------

    def submit(self, request: dict[str, Any], send: Send) -> Cancel:
        operation = request.get("op")
        if operation == "generate":
            return self._generate(request, send)
        if operation == "status":  # never behind a load
            status = self._runner.call(_status_of)
            status.add_done_callback(lambda future: send(answer_of(future.result), True))
            return lambda: None
        operations = {"load": self._load, "activate": self._activate, "unload": self._unload}
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
        self._steps.put(None)
        if self._sender.is_alive():
            self._sender.join(10.0)

    # -- generation ----------------------------------------------------------------------------------------------

    def _generate(self, payload: dict[str, Any], send: Send) -> Cancel:
        try:
            request = self._request(payload)
        except (TypeError, ValueError) as error:
            send(HostError("INVALID_ARGUMENT", f"malformed generate request: {error}").to_payload(), True)
            return lambda: None
        except HostError as error:
            send(error.to_payload(), True)
            return lambda: None
        self._sends[request] = send

        def start(engine: Engine) -> None:
            try:
                engine.submit(request)
            except HostError as error:
                self._steps.put([Emission(request, error=error)])

        def started(future: Future[None]) -> None:
            error = future.exception()
            if error is not None:  # the engine has stopped
                refused = error if isinstance(error, HostError) else HostError("INTERNAL", repr(error))
                self._steps.put([Emission(request, error=refused)])

        self._runner.call(start).add_done_callback(started)
        return lambda: self._cancel(request)

    def _cancel(self, request: Request) -> None:
        if request in self._sends:
            self._runner.call(lambda engine: engine.cancel(request))

    def _request(self, payload: dict[str, Any]) -> Request:
        prompt = [int(token) for token in payload["prompt"]] if "prompt" in payload else []
        width = self._masks.rows.shape[1]
        if not all(0 <= token < width for token in prompt):
            raise HostError("INVALID_ARGUMENT", f"prompt token ids must be in [0, {width})")
        room = self._max_tokens - len(prompt)
        if room < 1:
            raise HostError(
                "INVALID_ARGUMENT",
                f"the prompt has {len(prompt)} tokens; prompt and answer together hold {self._max_tokens}: shorten it",
            )
        asked = {name: value for name, value in (payload.get("sampling") or {}).items() if value is not None}
        stop = [asked["stop"]] if isinstance(asked.get("stop"), str) else list(asked.get("stop") or [])
        if len(stop) > _MAX_STOP_STRINGS or not all(isinstance(text, str) and 0 < len(text) <= 256 for text in stop):
            raise HostError("INVALID_ARGUMENT", f"stop takes up to {_MAX_STOP_STRINGS} strings of 1 to 256 characters")
        chosen = {**self._defaults, **asked}
        sampling = Sampling(
            temperature=float(chosen.get("temperature", 1.0)),
            top_p=float(chosen.get("top_p", 1.0)),
            top_k=int(chosen.get("top_k", 0)),
            seed=int(chosen["seed"]) if "seed" in asked else random.getrandbits(63),
            max_tokens=min(int(chosen.get("max_tokens", DEFAULT_MAX_TOKENS)), room),
        )
        return Request(
            request_id=str(payload.get("request_id", "")),
            prompt=prompt,
            sampling=sampling,
            pin=str(payload.get("version") or ""),
            answer=self._masks.answer(payload.get("modalities"), sampling.max_tokens),
            stop=StopStrings(stop, self._sequencer.decode_text, self._sequencer.layout.text_tokens) if stop else None,
        )

    def _send_steps(self) -> None:
        """Sends what the engine made, off its thread: tokens that gathered meanwhile go out together."""
        while (step := self._steps.get()) is not None:
            emissions = list(step)
            while not self._steps.empty():
                more = self._steps.get()
                if more is None:
                    self._steps.put(None)
                    break
                emissions.extend(more)
            by_request: dict[Request, list[Emission]] = {}
            for emission in emissions:
                by_request.setdefault(emission.request, []).append(emission)
            for request, group in by_request.items():
                try:
                    self._send_group(request, group)
                except Exception:  # one client's broken pipe is not the others' affair
                    log.exception("an answer could not be sent", extra={"request_id": request.request_id})
                    self._cancel(request)

    def _send_group(self, request: Request, group: list[Emission]) -> None:
        send = self._sends.get(request)
        if send is None:
            return
        chunk: dict[str, Any] | None = None
        for emission in group:
            if emission.token is None:
                continue
            if chunk is not None and chunk["version"] != emission.version:
                send(chunk, False)
                chunk = None
            if chunk is None:
                chunk = {"tokens": [], "logprobs": [], "version": emission.version}
            chunk["tokens"].append(emission.token)
            chunk["logprobs"].append(emission.logprob)
        if chunk is not None:
            send(chunk, False)
        last = group[-1]
        if last.error is None and not last.finished:
            return
        del self._sends[request]
        if last.error is not None:
            send(last.error.to_payload(), True)
            return
        send(
            {
                "finished": last.finished,
                "version_spans": [list(span) for span in request.spans],
                "sampling": asdict(request.sampling),
                "stopped_by": request.stop.found if request.stop is not None else "",
            },
            True,
        )

    # -- weights -------------------------------------------------------------------------------------------------

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        version, path, digest = str(request["version"]), Path(str(request["path"])), str(request.get("digest") or "")
        if not version:
            raise HostError("INVALID_ARGUMENT", "load needs a version")
        resident, like = self._runner.call(
            lambda engine: (engine.weights.get(version), engine.weights.serving or next(iter(engine.weights), None))
        ).result()
        if resident is not None and digest == resident.digest and not resident.retiring:
            return {"digest": resident.digest, "load_seconds": 0.0}
        weights = load_checkpoint(path, version, digest, like=like, layout=self._sequencer.layout)
        width = weights.model.config.get_text_config().vocab_size
        if width != self._masks.rows.shape[1]:
            raise HostError(
                "FAILED_PRECONDITION",
                f"checkpoint {version} was refused: its vocabulary has {width} tokens, "
                f"this replica's {self._masks.rows.shape[1]}",
            )
        self._runner.call(lambda engine: engine.add_weights(weights)).result()
        log.info("weights loaded", extra={"model": self._name, "version": version, "digest": weights.digest})
        return {"digest": weights.digest, "load_seconds": weights.load_seconds}

    def _activate(self, request: dict[str, Any]) -> dict[str, Any]:
        version, mode = str(request["version"]), str(request.get("mode") or self._swap_mode)
        if mode not in get_args(SwapMode):
            raise HostError("INVALID_ARGUMENT", f"mode is one of {', '.join(get_args(SwapMode))}, not {mode!r}")
        previous, stall = self._runner.call(lambda engine: engine.activate(version, mode)).result()  # type: ignore[arg-type]
        log.info(
            "weights activated",
            extra={"model": self._name, "version": version, "previous": previous, "mode": mode, "stall_seconds": stall},
        )
        return {"previous": previous, "stall_seconds": stall}

    def _unload(self, request: dict[str, Any]) -> dict[str, Any]:
        version = str(request["version"])
        self._runner.call(lambda engine: engine.weights.unload(version)).result()
        return {}


def _status_of(engine: Engine) -> dict[str, Any]:
    serving = engine.weights.serving
    return {
        "serving_version": serving.version if serving is not None else "",
        "weights": [
            {
                "version": weights.version,
                "digest": weights.digest,
                "serving": weights is serving,
                "running_requests": weights.users,
            }
            for weights in engine.weights
        ],
        "requests_running": len(engine.running),
        "requests_waiting": len(engine.waiting),
    }


def _generation_defaults(model_dir: Path) -> dict[str, Any]:
    """Sampling defaults of `generation_config.json`, under the names of the protocol."""
    path = model_dir / "generation_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    defaults = {name: config[name] for name in ("temperature", "top_p", "top_k") if config.get(name) is not None}
    if not config.get("do_sample", True):
        defaults["temperature"] = 0.0
    if config.get("max_new_tokens"):
        defaults["max_tokens"] = config["max_new_tokens"]
    return defaults
