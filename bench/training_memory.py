"""What the settings of docs/training-at-scale.md save: peak memory and seconds per step, each in a process of its own.

    python -m bench.training_memory            # a 27 M Llama, one thread: bench-out/training-memory.json

A step is one update on eight sequences of 256 tokens (`--length`). PPO has four models: policy, reference, reward model
and value function. Memory is the peak of the process less what it held with its imports done.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.serving.models import NAMES, model_directory
from trainer.answer_model import AnswerModel, ScalarModel, token_logprobs
from trainer.batches import TokenSequence, collate
from trainer.distributed import World
from trainer.engine import open_engine
from trainer.model_family import ModelFamily
from trainer.optimisation import OptimConfig

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "one model": ("policy", {}),
    "one model, bf16": ("policy", {"precision": "bf16"}),
    "one model, activation checkpointing": ("policy", {"activation_checkpointing": True}),
    "one model, LoRA 16": ("policy", {"lora_rank": 16}),
    "one model, LoRA 16 and activation checkpointing": (
        "policy",
        {"lora_rank": 16, "activation_checkpointing": True},
    ),
    "PPO's four models": ("ppo", {}),
    "PPO's four models, LoRA 16": ("ppo", {"lora_rank": 16}),
}
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-27m", choices=NAMES)
    parser.add_argument("--length", type=int, default=256, help="tokens of each of the eight sequences")
    parser.add_argument("--steps", type=int, default=3, help="timed, after one that is not")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = model_directory(options.model, Path(scratch))
        for name, (models, settings) in CASES.items():
            rows.append({"case": name} | alone(checkpoint, models, settings, options.length, options.steps))
            print(f"{name:50} {rows[-1]['peak_mib']:7.0f} MiB {rows[-1]['seconds_per_step']:7.2f} s/step", flush=True)
    out = Path("bench-out/training-memory.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(
        json.dumps(
            {"model": options.model, "length": options.length, "threads": torch.get_num_threads(), "rows": rows},
            indent=1,
        )
    )


def alone(checkpoint: Path, models: str, settings: dict[str, Any], length: int, steps: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=measure, args=(send, checkpoint, models, settings, length, steps)
    )
    process.start()
    send.close()
    found: dict[str, float] = receive.recv()
    process.join()
    return found


def measure(send: Any, checkpoint: Path, models: str, settings: dict[str, Any], length: int, steps: int) -> None:
    import peft  # noqa: F401 - what LoRA imports counts for nobody
    import transformers  # noqa: F401

    before = peak()
    optim, world = OptimConfig(**settings), World()
    half = length // 2
    sequences = [TokenSequence(tuple(range(8, 8 + half)), tuple(range(600 + i, 600 + i + half))) for i in range(8)]
    batch = collate(sequences)
    family = ModelFamily(checkpoint, optim, world)
    policy = open_engine(family.policy(AnswerModel), 1e-5, 100, optim, world)
    others: tuple[AnswerModel, ScalarModel] | None = None
    if models == "ppo":
        values = open_engine(family.scalar("critic"), 1e-5, 100, optim, world)
        others = (family.reference(checkpoint), family.scalar("reward"))

    def step() -> None:
        policy.step([lambda: -token_logprobs(policy.module, batch).mean()])
        if others:
            values.step([lambda: (values.module(batch.input_ids, batch.last) - 1).square().mean()])
            with torch.no_grad():
                token_logprobs(others[0], batch)
                others[1](batch.input_ids, batch.last)

    step()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    seconds = (time.perf_counter() - began) / steps
    trained = sum(one.numel() for one in policy.trained.values())
    send.send({"peak_mib": (peak() - before) / MIB, "seconds_per_step": seconds, "trained_parameters": trained})


def peak() -> int:
    """Bytes this process has held at most; getrusage would count its parent's before it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
