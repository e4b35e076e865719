"""What each kind of cell does, with the trainer's own functions and the serving engine in this process.

A seed and a round have one set of prompts, the logged answers to them, and people's annotations of the first of these:
a critique of the answer, or which of two answers is better. Every method may use all prompts, and as many annotations
as its cell says. From the second round on the weights before are kept where the gate's rule says so.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.paper import careless, shared_work
from bench.paper.plan import Cell
from bench.paper.shared_work import read, refined, reward_of, told
from bench.paper.work import BEST_OF, OWN, SETTINGS, Work, answered, evaluated, remarks
from trainer.algorithms.dpo import train_dpo
from trainer.algorithms.grpo import train_grpo
from trainer.algorithms.ppo import train_ppo
from trainer.algorithms.rollout import Rollout
from trainer.batches import TokenSequence
from trainer.config import TrainerSettings
from trainer.examples import Pair, Seed
from trainer.gate.bootstrap import mean_by_subtask, paired_gain
from trainer.gate.config import GateSettings
from trainer.gate.decision import decide
from trainer.pair_selection import select_pairs
from trainer.rollouts import as_rollout, rollout_requests, whole_answers

_GATE = 770_001  # seed of the gate's prompts and of the answers to them
_GATE_PROMPTS = 30  # per subtask, as in service


def recipe() -> dict[str, Any]:
    """What every result depends on beside its cell: a change of any of it makes them all stale."""
    return {
        "settings": SETTINGS,
        "own": OWN,
        "trainer": TrainerSettings().model_dump(mode="json"),
        "careless": [careless.NOISE.critiques, careless.NOISE.answers, careless.STEPS, careless.LEARNING_RATE],
        "answers": [BEST_OF, shared_work.PARTIAL_CRITIQUES, _GATE_PROMPTS],
    }


def run_cell(cell: Cell, inputs: dict[str, Path], folder: Path) -> dict[str, Any]:
    """Does a cell. Returns settings and metrics, of methods the outcomes too; `folder` gets what other cells need."""
    torch.set_num_threads(1)
    return _CELLS[cell.kind](Work(cell, inputs, folder))


def base(work: Work) -> dict[str, Any]:
    return evaluated(work, "base", {})


def dpo(work: Work) -> dict[str, Any]:
    learned_from = told(work)
    if not learned_from:  # a careless critique model may call every answer right
        return evaluated(work, "base", {"pairs": 0})
    if work.cell.round > 1:
        learned_from = with_earlier(work, learned_from)
    trained = train_dpo(work.world, work.base, work.base, learned_from, [], work.settings.dpo, work.settings.optim)
    return learned(work, trained.tensors, trained.metrics)


def with_earlier(work: Work, pairs: list[Pair]) -> list[Pair]:
    """A round's pairs and those of the round before that the trainer mixes in."""
    earlier = [(1, pair) for pair in refined(work, "earlier")]
    layout = work.engine.sequencer.layout
    return select_pairs(pairs, earlier, layout, work.settings, work.cell.round).pairs


def learned(work: Work, tensors: dict[str, torch.Tensor], metrics: dict[str, Any]) -> dict[str, Any]:
    """Outcomes of new weights, which from the second round on the gate may refuse."""
    folder = work.write("policy", tensors)
    work.engine.load("learned", folder, serve=False)
    if work.cell.round == 1:
        return evaluated(work, "learned", metrics)
    promoted, reason = gate(work)
    if not promoted:
        shutil.rmtree(folder)
        shutil.copytree(work.base, folder)
    return evaluated(work, "learned" if promoted else "base", metrics | {"promoted": promoted, "gate": reason})


def gate(work: Work) -> tuple[bool, str]:
    """The decision of the gate in service on `learned` against `base`, on prompts of its own split."""
    settings = GateSettings()
    names: list[str] = []
    before: list[float] = []
    after: list[float] = []
    for version, found in (("base", before), ("learned", after)):
        outcomes, _ = answered(work, version, "gate", _GATE_PROMPTS, _GATE)
        names = [name for name, values in outcomes.items() for _ in values]
        found += [value for values in outcomes.values() for value in values]
    gain = paired_gain(names, before, after, confidence=settings.confidence, resamples=settings.resamples)
    decision = decide(gain, mean_by_subtask(names, before), mean_by_subtask(names, after), 0.0, settings)
    return decision.promote, decision.reason


def online(work: Work) -> dict[str, Any]:
    """PPO or GRPO: rollouts by the engine, on all prompts of the round."""
    grpo = work.cell.kind.endswith("grpo")
    settings = work.settings.model_copy(update={"algorithm": "grpo" if grpo else "ppo"})
    seeds = [Seed(str(n), one.prompt, (), one.modalities, None, "", 1.0) for n, one in enumerate(work.logged)]
    resident = "base"

    def rollouts(turn: int, weights: dict[str, torch.Tensor] | None) -> list[Rollout]:
        nonlocal resident
        if weights is not None:
            work.engine.load(f"turn-{turn}", work.write(f"turn-{turn}", weights), serve=False)
            if resident != "base":
                work.engine.unload(resident)
            resident = f"turn-{turn}"
        asked = rollout_requests(seeds, turn, settings, resident)
        samples = work.engine.generate([request for _, request in asked])
        whole = whole_answers(asked, samples)
        judged = read(work, [TokenSequence(request.prompt, one.tokens) for _, request, one in whole])
        return [
            replace(as_rollout(group, request, one, settings), judged=seen)
            for (group, request, one), seen in zip(whole, judged, strict=True)
        ]

    reward, start, optim = reward_of(work), work.base, settings.optim
    if grpo:
        trained = train_grpo(work.world, start, start, reward, [], settings.grpo, optim, rollouts=rollouts)
    else:
        trained = train_ppo(work.world, start, start, reward, [], settings.ppo, optim, rollouts=rollouts)
    return learned(work, trained.tensors, trained.metrics)


def best_of_n(work: Work) -> dict[str, Any]:
    """The base's answer that the reward model, or the critique model that words have taught, likes best."""

    def approval(answers: list[TokenSequence]) -> list[float]:
        return [float(work.settings.says_right(words)) for words in remarks(work.critic, answers)]

    if "critic" in work.inputs:
        return evaluated(work, "base", {"n": BEST_OF}, approval)
    score = reward_of(work).open(work.settings.optim)
    return evaluated(work, "base", {"n": BEST_OF}, lambda answers: score(read(work, answers)))


_CELLS: dict[str, Callable[[Work], dict[str, Any]]] = {
    "model": shared_work.model,
    "answers": shared_work.answers,
    "critic": shared_work.critic,
    "pairs": shared_work.pairs,
    "reward": shared_work.reward,
    "llf-reward": shared_work.reward,
    "base": base,
    "dpo": dpo,
    "llf-dpo": dpo,
    "ppo": online,
    "llf-ppo": online,
    "grpo": online,
    "llf-grpo": online,
    "best-of-n": best_of_n,
    "llf-best-of-n": best_of_n,
}
