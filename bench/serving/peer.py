"""`transformers serve` of the installed release, at its best setting on a CPU.

Continuous batching, with a cache of 16,384 tokens. It takes temperature, top-p and do_sample from the first request of
its life, so greedy and sampled answers need a server each.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.serving.processes import ContenderFailed, free_port, run_client, running

# DeepSpeed is here for AnyLoop's trainer; a server without it starts faster and smaller.
_PROGRAM = """
import sys
sys.modules["deepspeed"] = None
from transformers.cli.transformers import main
sys.argv[0] = "transformers"
sys.exit(main())
"""
# The best of a sweep with llama-7m on two cores (tokens/s at 8 and 32 streams, two figures where taken twice): blocks
# x size, tokens a batch: 512 x 32, 512: 650, 522 · 512 x 32, 128: 635, 519 · 512 x 32, 2048: 726 and 649, 589 and 504 ·
# 2048 x 16, 256: 642, 517 · 128 x 128, 2048: 553, 509 · 64 x 256, 2048: 661, 590 · 64 x 256, 512: 656, 600 · its own
# sizes: 537, 471 in 8.6 GB.
BATCHING = ("--continuous-batching", "--cb-num-blocks=64", "--cb-block-size=256", "--cb-max-batch-tokens=512")


@dataclass(frozen=True)
class Peer:
    address: str
    model: str
    pid: int

    def job(
        self, prompts: list[dict[str, Any]], streams: int, max_tokens: int, sampling: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "kind": "sse",
            "address": self.address,
            "streams": streams,
            "prompts": prompts,
            "max_tokens": max_tokens,
            "sampling": sampling,
            "body": {"model": self.model},
        }


@contextlib.contextmanager
def transformers_serve(directory: Path, log: Path, flags: tuple[str, ...] = BATCHING) -> Iterator[Peer]:
    """Raises ContenderFailed."""
    port = free_port()
    model = str(directory.absolute())
    if importlib.util.find_spec("accelerate") is None:
        raise ContenderFailed("transformers serve needs accelerate: pip install accelerate")
    argv = [sys.executable, "-c", _PROGRAM, "serve", model, "--host=127.0.0.1", f"--port={port}", *flags]
    with running(argv, log, lambda: _healthy(port), "transformers serve") as child:
        yield Peer(f"127.0.0.1:{port}", model, child.pid)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def same_text_twice(job: dict[str, Any]) -> bool:
    """Whether one prompt, asked twice at temperature 1 without a seed, gives one text: only frozen sampling does."""
    texts = [answer.text for answer in run_client({**job, "prompts": [job["prompts"][0]] * 2, "streams": 1})]
    return len(texts) == 2 and bool(texts[0]) and texts[0] == texts[1]
