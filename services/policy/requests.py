"""From the `generate` payload of the hosts to the engine's request: checked, defaults filled in."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from anyloop.sequence import Sequencer
from anyloop.sequence.token_bytes import TokenBytes
from anyloop.telemetry import tracing
from anyloop.telemetry.context import TRACEPARENT
from services.hosts.interface import HostError
from services.policy.engine import Request, Sampling
from services.policy.engine.answer_masks import MaskTable
from services.policy.engine.stop_strings import StopStrings

DEFAULT_MAX_TOKENS = 128  # when neither the request nor generation_config.json says
_MAX_STOP_STRINGS = 16


class RequestReader:
    """Knows the tokenizer, the token layout and the sampling defaults of one model directory."""

    def __init__(self, model_dir: Path, max_tokens: int) -> None:
        """`max_tokens` bounds prompt and answer together."""
        self.sequencer = Sequencer.from_pretrained(model_dir)
        vocabulary = int(json.loads((model_dir / "config.json").read_text()).get("vocab_size", 0))
        self.masks = MaskTable(self.sequencer.layout, vocabulary)
        self._bytes = TokenBytes(self.sequencer.tokenizer)
        self._defaults = _generation_defaults(model_dir)
        self._max_tokens = max_tokens

    @property
    def vocabulary(self) -> int:
        return int(self.masks.rows.shape[1])

    def request(self, payload: dict[str, Any]) -> Request:
        """Raises HostError INVALID_ARGUMENT on values out of range; TypeError and ValueError on malformed ones."""
        prompt = [int(token) for token in payload["prompt"]] if "prompt" in payload else []
        if not all(0 <= token < self.vocabulary for token in prompt):
            raise HostError("INVALID_ARGUMENT", f"prompt token ids must be in [0, {self.vocabulary})")
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
        sampling = self._sampling(asked, room)
        text_tokens = self.sequencer.layout.text_tokens
        return Request(
            request_id=str(payload.get("request_id", "")),
            prompt=prompt,
            sampling=sampling,
            key=str(payload.get("key") or ""),
            pin=str(payload.get("version") or ""),
            answer=self.masks.answer(payload.get("modalities"), sampling.max_tokens),
            stop=StopStrings(stop, self._bytes.of, text_tokens) if stop else None,
            span=_span(payload, len(prompt)),
        )

    def _sampling(self, asked: dict[str, Any], room: int) -> Sampling:
        chosen = {**self._defaults, **asked}
        return Sampling(
            temperature=float(chosen.get("temperature", 1.0)),
            top_p=float(chosen.get("top_p", 1.0)),
            top_k=int(chosen.get("top_k", 0)),
            min_p=float(chosen.get("min_p", 0.0)),
            repetition_penalty=float(chosen.get("repetition_penalty", 1.0)),
            presence_penalty=float(chosen.get("presence_penalty", 0.0)),
            frequency_penalty=float(chosen.get("frequency_penalty", 0.0)),
            logit_bias=self._bias(dict(chosen.get("logit_bias") or {})),
            top_logprobs=int(chosen.get("top_logprobs", 0)),
            seed=int(chosen["seed"]) if "seed" in asked else random.getrandbits(63),
            max_tokens=min(int(chosen.get("max_tokens", DEFAULT_MAX_TOKENS)), room),
        )

    def _bias(self, asked: dict[Any, Any]) -> dict[int, float]:
        """Keys may be strings: a payload is JSON."""
        bias = {int(token): float(value) for token, value in asked.items()}
        stranger = next((token for token in bias if token >= self.vocabulary), None)
        if stranger is not None:
            raise HostError("INVALID_ARGUMENT", f"logit_bias names token {stranger}; ids are in [0, {self.vocabulary})")
        return bias


def _span(payload: dict[str, Any], prompt_tokens: int) -> tracing.Span | None:
    """From here, where the request begins to wait, to its last token."""
    if not tracing.on():
        return None
    parent = str(payload.get(TRACEPARENT) or "")
    return tracing.start("engine", parent=parent, attributes={"gen_ai.usage.input_tokens": prompt_tokens})


_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def _generation_defaults(model_dir: Path) -> dict[str, Any]:
    """Sampling defaults of `generation_config.json`, under the names of the protocol."""
    path = model_dir / "generation_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    defaults = {name: config[name] for name in _DEFAULTS if config.get(name) is not None}
    if not config.get("do_sample", True):
        defaults["temperature"] = 0.0
    if config.get("max_new_tokens"):
        defaults["max_tokens"] = config["max_new_tokens"]
    return defaults
