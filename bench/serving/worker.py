"""`python -m bench.serving.worker`: the in-process contender and the floors, one JSON job a line (see `Worker`)."""

from __future__ import annotations

import logging
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

    def decode(self, prompts: list[list[int]], steps: int, sampling: dict[str, Any]) -> float:
        """Tokens per second of steps that only decode."""
        return len(prompts) / decode_seconds(self._opened, prompts, steps, sampling)

    def profile(self, prompts: list[list[int]], steps: int, sampling: dict[str, Any]) -> dict[str, Any]:
        return profile_phases(self._opened, prompts, steps, sampling)

    def forward_floor(self, directory: str, batch: int, prompt_tokens: int, steps: int) -> dict[str, float]:
        return floors.hugging_face_forward(_model(directory), batch, prompt_tokens, steps)

    def matmul_floor(self, directory: str, batch: int, prompt_tokens: int, steps: int) -> dict[str, float]:
        return floors.matmuls(_model(directory), batch, prompt_tokens, steps)

    @property
    def _opened(self) -> OpenEngine:
        if self._engine is None:
            raise RuntimeError("no engine is open: send `open` first")
        return self._engine


def _model(directory: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    jobs = _Jobs()
    serve_jobs(
        {name: getattr(jobs, name) for name in ("open", "load", "decode", "profile", "forward_floor", "matmul_floor")}
    )
