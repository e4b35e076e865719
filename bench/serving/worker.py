"""`python -m bench.serving.worker`: the in-process contender and the floors, one JSON job a line (see `Worker`)."""

from __future__ import annotations

import logging
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from anyloop.config import Settings
from bench.serving import floors
from bench.serving.inprocess import OpenEngine, decode_seconds, measure
from bench.serving.phases import profile_phases
from bench.serving.processes import serve_jobs

ROUNDS = 3


class _Jobs:
    """The operations; `directory` names the model that a job is about."""

    def __init__(self) -> None:
        self._settings = Settings(_env_file=None)  # type: ignore[call-arg]
        self._engine: OpenEngine | None = None

    def open(self, directory: str) -> dict[str, Any]:
        self._engine = OpenEngine(Path(directory), self._settings)
        names = [name for name in Settings.model_fields if name.startswith("engine_")]
        settings = {name: getattr(self._settings, name) for name in names}
        return {
            "settings": settings,
            "forward": self._engine.forward,
            "kv_cache_bytes": self._engine.engine.cache_bytes,
            "kv_cache_rows": self._settings.engine_slots + self._settings.engine_prefix_rows,
        }

    def load(
        self, prompts: list[list[int]], streams: int, max_tokens: int, sampling: dict[str, Any]
    ) -> list[dict[str, Any]]:
        return [asdict(answer) for answer in measure(self._opened, prompts, streams, max_tokens, sampling)]

    def profile(self, prompts: list[list[int]], steps: int, sampling: dict[str, Any]) -> dict[str, Any]:
        return profile_phases(self._opened, prompts, steps, sampling)

    def beside_the_floors(
        self, directory: str, prompts: list[list[int]], steps: int, samplings: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        """Tokens per second at one batch: the engine's decode steps by mode, forward passes and matmuls alone, taken in
        turn so that all of them meet the same machine; the median of each."""
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
        batch, length = len(prompts), round(sum(map(len, prompts)) / len(prompts))
        rounds = []
        for _ in range(ROUNDS):
            engine = {
                mode: batch / decode_seconds(self._opened, prompts, steps, sampling)
                for mode, sampling in samplings.items()
            }
            forward = floors.hugging_face_forward(model, batch, length, steps)
            rounds.append(
                {
                    "engine": engine,
                    "hugging_face_forward": forward,
                    "matmuls": floors.matmuls(model, batch, length, steps),
                }
            )
        return {
            kind: {name: statistics.median(each[kind][name] for each in rounds) for name in rounds[0][kind]}
            for kind in rounds[0]
        }

    @property
    def _opened(self) -> OpenEngine:
        if self._engine is None:
            raise RuntimeError("no engine is open: send `open` first")
        return self._engine


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    jobs = _Jobs()
    serve_jobs({name: getattr(jobs, name) for name in ("open", "load", "profile", "beside_the_floors")})
