"""TRL's side: its trainers as a user runs them, at the settings that are fastest on a CPU.

No gradient checkpointing, no bf16, the reference's log-probabilities computed beforehand, all answers generated in one
batch, the fused AdamW. `padding_free` of its DPOTrainer is disabled in TRL 1.16; liger and vLLM need a GPU.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from bench.trainer.material import Fixed, Material, Tokens, reward
from bench.trainer.plan import DPO, ONLINE, PEER, Workload
from bench.trainer.result import Result, peak_rss

LR = 1e-5
OPTIMISATION: dict[str, Any] = {
    "learning_rate": LR,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "weight_decay": 0.0,
    "max_grad_norm": 1e9,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": [],
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
}


def text(tokens: Tokens) -> str:
    return "".join(f" <{token}>" for token in tokens)


def word_per_token(material: Material) -> PreTrainedTokenizerFast:
    """A tokenizer that gives the ids back of which `text` was made."""
    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(material.vocabulary)}, unk_token="<0>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    start = f"<{material.start}>"
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=start, bos_token=start, eos_token=f"<{material.end}>"
    )


class Laps(TrainerCallback):
    """Times from the end of one step to the end of the next, whatever lies between; the first step warms up."""

    def __init__(self) -> None:
        self._ends: list[tuple[float, float]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._ends.append((time.perf_counter(), time.process_time()))

    @property
    def wall(self) -> list[float]:
        return [after[0] - before[0] for before, after in pairwise(self._ends)]

    @property
    def cpu(self) -> list[float]:
        return [after[1] - before[1] for before, after in pairwise(self._ends)]


def load(model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)


def run_dpo(model: Path, material: Material, workload: Workload) -> Result:
    rows = [
        {"prompt": text(prompt), "chosen": text(chosen), "rejected": text(rejected)}
        for prompt, chosen, rejected in material.pairs
    ]
    tokens = sum(2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in material.pairs)
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=workload.pairs,
            max_steps=workload.steps + 1,
            precompute_ref_log_probs=True,
            train_sampling_strategy="sequential",
            max_length=None,
            **OPTIMISATION,
        )
        policy, laps = load(model), Laps()
        result = Result(PEER, DPO, workload.pairs, tokens / (workload.steps + 1))
        scoring = _Timed(trl.DPOTrainer, "_precompute_ref_logps")
        with scoring:
            trainer = trl.DPOTrainer(
                policy,
                args=arguments,
                train_dataset=Dataset.from_list(rows),
                processing_class=word_per_token(material),
                callbacks=[laps],
            )
        result.prepare_s = scoring.seconds
        trainer.train()
    return _finished(result, trainer, laps)


def run_online(model: Path, material: Material, workload: Workload) -> Result:
    samples = workload.prompts * workload.group
    rewarding = _Sum()
    sizes: list[int] = []

    def even_tokens(completion_ids: list[list[int]], prompts: list[str], **_: Any) -> list[float]:
        began = time.perf_counter()
        rewards = [reward(tuple(one)) for one in completion_ids]
        sizes.append(sum(map(len, completion_ids)) + sum(len(prompt.split()) for prompt in prompts))
        rewarding.add(time.perf_counter() - began)
        return rewards

    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=samples,
            num_generations=workload.group,
            max_completion_length=workload.max_tokens,
            max_steps=workload.online_steps + 1,
            shuffle_dataset=False,
            temperature=1.0,
            **OPTIMISATION,
        )
        policy, laps = load(model), Laps()
        result = Result(PEER, ONLINE, samples, 0.0)
        trainer = trl.GRPOTrainer(
            policy,
            even_tokens,
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": text(prompt)} for prompt, _ in material.prompts]),
            processing_class=word_per_token(material),
            callbacks=[laps],
        )
        if material.fixed:
            result.fixed_loss, result.fixed_gradient_norm = fixed_step(trainer, material.fixed, material.start)
        generating = _Timed(type(trainer), "_generate_single_turn")
        with generating:
            trainer.train()
    generated = generating.each[1:]
    rewarded = rewarding.each[1:]
    result.phases = {
        "generate": generated,
        "reward": rewarded,
        "update": [step - one - two for step, one, two in zip(laps.wall, generated, rewarded, strict=True)],
    }
    result.tokens = sum(sizes[1:]) / len(sizes[1:])
    return _finished(result, trainer, laps)


def fixed_step(trainer: Any, fixed: list[Fixed], pad: int) -> tuple[float, float]:
    """Loss and gradient norm on rollouts that both sides are given; moves nothing."""
    longest_prompt, longest = max(len(one.prompt) for one in fixed), max(len(one.answer) for one in fixed)

    def padded(rows: list[list[float]], fill: float, width: int, left: bool = False) -> torch.Tensor:
        spare = [[fill] * (width - len(row)) for row in rows]
        return torch.tensor([more + row if left else row + more for row, more in zip(rows, spare, strict=True)])

    prompts, answers = [list(one.prompt) for one in fixed], [list(one.answer) for one in fixed]
    inputs = {
        "prompt_ids": padded(prompts, pad, longest_prompt, left=True),  # type: ignore[arg-type]
        "prompt_mask": padded([[1] * len(row) for row in prompts], 0, longest_prompt, left=True),
        "completion_ids": padded(answers, pad, longest),  # type: ignore[arg-type]
        "completion_mask": padded([[1] * len(row) for row in answers], 0, longest),
        "old_per_token_logps": padded([list(one.logprobs) for one in fixed], 0.0, longest),
        "advantages": torch.tensor([one.advantage for one in fixed]),
        "num_items_in_batch": torch.tensor(float(sum(map(len, answers)))),
    }
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    norm = torch.stack([one.grad.norm() for one in trainer.model.parameters() if one.grad is not None]).norm()
    trainer.model.zero_grad(set_to_none=True)
    trainer._metrics["train"].clear()
    return float(loss.detach()), float(norm)


def _finished(result: Result, trainer: Any, laps: Laps) -> Result:
    logged = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    result.losses = [entry["loss"] for entry in logged]
    result.gradient_norms = [float(entry["grad_norm"]) for entry in logged]
    result.steps_s, result.cpu_s = laps.wall, laps.cpu
    result.peak_rss = peak_rss()
    return result


class _Sum:
    def __init__(self) -> None:
        self.each: list[float] = []

    def add(self, seconds: float) -> None:
        self.each.append(seconds)

    @property
    def seconds(self) -> float:
        return sum(self.each)


class _Timed(_Sum):
    """Adds up the time in a method of a class while open."""

    def __init__(self, owner: type, name: str) -> None:
        super().__init__()
        self._owner, self._name, self._method = owner, name, getattr(owner, name)

    def __enter__(self) -> None:
        method = self._method

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.add(time.perf_counter() - began)

        setattr(self._owner, self._name, timed)

    def __exit__(self, *raised: object) -> None:
        setattr(self._owner, self._name, self._method)


RUNS = {DPO: run_dpo, ONLINE: run_online}
TRAINERS = {DPO: "DPOTrainer", ONLINE: "GRPOTrainer"}


def import_all(kind: str) -> None:
    """TRL imports its trainers when they are first named."""
    getattr(trl, TRAINERS[kind])


warnings.simplefilter("ignore")  # deprecations of the peer's own code are not ours to report
