"""One round of the trainer's own steps on given feedback, with the serving engine in process."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anyloop.sequence import Segment, Sequencer
from bench.engine_services import Checkpoints, EngineServices, ServingEngine
from bench.hostile.world import VERSION
from protos.anyloop.v1 import types_pb2
from trainer.algorithms.dpo import train_dpo
from trainer.algorithms.feedback_modelling import mix, split_held_out, train_critic
from trainer.batches import TokenSequence
from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.examples import Example, form_examples
from trainer.influence import cap_examples
from trainer.join import Joined
from trainer.pair_selection import select_pairs
from trainer.robust import judge_statements, metrics_of, smoothing, trust_of
from trainer.self_improving import SelfImprover


def learn(
    model: Path,
    policy: ServingEngine,
    feedback: Sequence[Joined],
    settings: TrainerSettings,
    checkpoints: Checkpoints,
    seed: int,
) -> tuple[Path, dict[str, Any], dict[str, float]]:
    """The new policy, what the round reports, and how far each statement was believed (empty without robust mode)."""
    world, sequencer = World(), Sequencer.from_pretrained(model)
    examples = form_examples(feedback, sequencer, settings, _no_media, [VERSION])
    found = judge_statements(world, model, examples.statements, settings.robust, settings.critique, settings.optim)
    trust, metrics = {}, {}
    if found is not None:
        trust, metrics = trust_of(examples.statements, found), metrics_of(examples.statements, found)
        examples = form_examples(feedback, sequencer, settings, _no_media, [VERSION], trust=trust)

    learned, held_out = split_held_out(examples.critiques, settings.critique_held_out)
    anchors = [Example(TokenSequence(seed.prompt, seed.answer), seed.response_id) for seed in examples.seeds]
    mixed, _ = cap_examples(mix(learned, [], anchors, settings.critique, settings.seed), settings.max_principal_share)
    trained = train_critic(world, model, mixed, held_out, settings.critique, settings.optim)
    metrics |= trained.metrics
    critic = ServingEngine(model)
    critic.load(VERSION, checkpoints.write("critique", trained.tensors))

    services: Any = EngineServices(policy, critic)
    improver = SelfImprover(services, sequencer, settings, VERSION, seed)
    improvement = asyncio.run(improver.pairs(examples.seeds))
    chosen = select_pairs(examples.pairs + improvement.pairs, [], sequencer.layout, settings, seed)
    config = replace(settings.dpo, label_smoothing=smoothing(trust, chosen.pairs, settings.dpo_label_smoothing))
    imitations, _ = cap_examples(examples.imitations, settings.max_principal_share)
    updated = train_dpo(world, model, model, chosen.pairs, imitations, config, settings.optim)
    metrics |= dict(improvement.counts) | chosen.metrics | updated.metrics | {"label_smoothing": config.label_smoothing}
    return checkpoints.write("policy", updated.tensors), metrics, trust


def _no_media(part: types_pb2.ContentPart) -> Segment:
    """Refinements by people do not occur here."""
    raise AssertionError("this bench gives critiques only")
