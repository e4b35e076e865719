"""Our side: the trainer's own functions, step by step, with rollouts from the serving engine in this process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anyloop.modality import Modality
from bench.engine_services import Checkpoints, ServingEngine
from bench.trainer.material import Fixed, Material, reward
from bench.trainer.plan import DPO, ONLINE, OURS, PPO, Workload
from bench.trainer.result import Result, peak_rss
from trainer.algorithms import grpo, ppo
from trainer.algorithms.actor import Watch
from trainer.algorithms.dpo import DPOConfig, dpo_step, reference_scores
from trainer.algorithms.reward_model import Reward
from trainer.algorithms.rollout import Rollout, Score
from trainer.answer_model import AnswerModel
from trainer.batches import TokenSequence
from trainer.clients import SampleRequest
from trainer.distributed import World
from trainer.engine import open_engine
from trainer.examples import Pair
from trainer.optimisation import OptimConfig
from trainer.prefix_proof import prove_sharing
from trainer.shared_prefix import group_answers
from trainer.trained import lm_tensors

LR = 1e-5
OPTIM = OptimConfig(warmup=0.0, clip_norm=1e9)  # nothing is clipped, so that gradients can be compared


def run_dpo(model: Path, material: Material, workload: Workload) -> Result:
    config = DPOConfig(lr=LR, sft_coefficient=0.0, batch=workload.pairs, epochs=1)
    pairs = [Pair(*pair, "preference", str(number)) for number, pair in enumerate(material.pairs)]
    module = AnswerModel.load(model)
    result = Result(OURS, DPO, workload.pairs, _tokens(pairs) / (workload.steps + 1))
    began = time.perf_counter()
    sharing = prove_sharing(module, OPTIM.shared_prefix)
    scored = reference_scores(module, pairs, OPTIM.batch_tokens, sharing)
    result.prepare_s = time.perf_counter() - began
    engine = open_engine(module, config.lr, workload.steps + 1, OPTIM, World())
    for begin in range(0, len(scored), workload.pairs):
        began, busy = time.perf_counter(), time.process_time()
        seen = dpo_step(engine, scored[begin : begin + workload.pairs], [], config, OPTIM, World(), sharing)
        result.steps_s.append(time.perf_counter() - began)
        result.cpu_s.append(time.process_time() - busy)
        result.losses.append(seen["loss"])
        result.gradient_norms.append(gradient_norm(engine.module))
    result.steps_s, result.cpu_s = result.steps_s[1:], result.cpu_s[1:]  # the first warms up
    result.peak_rss = peak_rss()
    return result


@dataclass(frozen=True)
class EvenTokens:
    """The reward of both sides."""

    value_start: dict[str, Tensor] | None = None

    def open(self, optim: OptimConfig) -> Score:
        return lambda sequences: [reward(sequence.answer) for sequence in sequences]


class Rollouts:
    """The serving engine, given the trainer's weights before every turn as a rollout's weights are: by a checkpoint."""

    def __init__(self, model: Path, folder: Path, material: Material, workload: Workload) -> None:
        self._engine = ServingEngine(model, slots=workload.prompts * workload.group)
        self._engine.load("0", model)
        self._checkpoints = Checkpoints(model, folder)
        self._material, self._workload = material, workload

    def stage(self, turn: int, tensors: dict[str, Tensor]) -> None:
        """The engine goes over to `tensors`, and lets go of those before."""
        self._engine.load(str(turn), self._checkpoints.write("staged", tensors))

    def sample(self, turn: int) -> list[Rollout]:
        count, group, limit = self._workload.prompts, self._workload.group, self._workload.max_tokens
        asked = [
            (number, SampleRequest(prompt, modalities, 1.0, limit, seed=1000 * turn + group * number + answer))
            for number, (prompt, modalities) in enumerate(self._material.prompts[turn * count : (turn + 1) * count])
            for answer in range(group)
        ]
        samples = self._engine.generate([request for _, request in asked])
        return [
            Rollout(request.prompt, one.tokens, one.logprobs, request.modalities, limit, group=number)
            for (number, request), one in zip(asked, samples, strict=True)
        ]


def run_online(kind: str, model: Path, material: Material, workload: Workload) -> Result:
    """Turns of generation, weights and update; of GRPO, or of PPO with a critic of its own."""
    samples = workload.prompts * workload.group
    even: Reward = EvenTokens()
    if kind == ONLINE:
        config = grpo.GRPOConfig(
            lr=LR,
            iterations=workload.online_steps + 1,
            prompts=workload.prompts,
            batch=workload.prompts,
            group=workload.group,
        )
        learner: Any = grpo.GRPOTraining.open(World(), model, model, even, config, OPTIM)
        collect, update = grpo.collect, grpo.update
    else:
        settings = ppo.PPOConfig(
            actor_lr=LR, iterations=workload.online_steps + 1, rollouts=samples, epochs=1, batch=samples
        )
        learner = ppo.PPOTraining.open(World(), model, model, even, settings, OPTIM)
        collect, update = ppo.collect, ppo.update  # type: ignore[assignment]
    result = Result(OURS, kind, samples, 0.0)
    names = ("weights", "generate", "reward", "update")
    result.phases = {name: [] for name in names}
    tokens = []
    with tempfile.TemporaryDirectory() as folder:
        rollouts = Rollouts(model, Path(folder), material, workload)
        if kind == ONLINE and material.fixed:
            result.fixed_loss, result.fixed_gradient_norm = fixed_step(learner, material.fixed)
        for turn in range(workload.online_steps + 1):
            seconds = _Clock()
            if turn:
                rollouts.stage(turn, lm_tensors(learner.actor.tensors()))
            seconds.lap("weights")
            sampled = rollouts.sample(turn)
            seconds.lap("generate")
            experience, _ = collect(learner, sampled)
            seconds.lap("reward")
            result.losses.append(update(learner, experience, [], turn)["policy_loss"])
            seconds.lap("update")
            result.gradient_norms.append(gradient_norm(learner.actor.module))
            tokens.append(sum(len(one.prompt) + len(one.answer) for one in sampled))
            if turn:  # the first warms up
                for name in names:
                    result.phases[name].append(seconds.laps[name])
                result.steps_s.append(sum(seconds.laps.values()))
                result.cpu_s.append(seconds.cpu)
    result.tokens = sum(tokens[1:]) / len(tokens[1:])
    result.peak_rss = peak_rss()
    return result


def fixed_step(learner: grpo.GRPOTraining, fixed: Sequence[Fixed]) -> tuple[float, float]:
    """Loss and gradient norm on rollouts that both sides are given; moves nothing."""
    experience = [
        grpo.Experience(Rollout(one.prompt, one.answer, one.logprobs, (Modality.TEXT,)), one.advantage) for one in fixed
    ]
    scaled = grpo.factors(experience, learner.config, sum(len(one.answer) for one in fixed))
    step, watch, total = list(zip(experience, scaled, strict=True)), Watch(), 0.0
    for group in group_answers([one.rollout.sequence for one in experience], OPTIM.batch_tokens, learner.sharing):
        loss = grpo.policy_part(learner, step, group, watch, True)
        loss.backward()
        total += float(loss.detach())
    norm = gradient_norm(learner.actor.module)
    learner.actor.module.zero_grad(set_to_none=True)
    return total, norm


def gradient_norm(module: nn.Module) -> float:
    """Of the gradients that the last step left."""
    return float(torch.stack([one.grad.norm() for one in module.parameters() if one.grad is not None]).norm())


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._at, self._busy = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._at = now - self._at, now

    @property
    def cpu(self) -> float:
        """CPU seconds of this process since the begin."""
        return time.process_time() - self._busy


def _tokens(pairs: Sequence[Pair]) -> int:
    sequences: list[TokenSequence] = [sequence for pair in pairs for sequence in pair.sequences]
    return sum(len(sequence) for sequence in sequences)


RUNS: dict[str, Callable[[Path, Material, Workload], Result]] = {
    DPO: run_dpo,
    ONLINE: lambda *job: run_online(ONLINE, *job),
    PPO: lambda *job: run_online(PPO, *job),
}
