"""How a round's pairs move the policy: by DPO, or by a reward model and then PPO or GRPO on sampled answers."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from anyloop.sequence import SequenceLayout, Sequencer
from anyloop.telemetry import metrics
from trainer.algorithms.dpo import train_dpo
from trainer.algorithms.grpo import train_grpo
from trainer.algorithms.ppo import train_ppo
from trainer.algorithms.reward_model import TrainedReward, train_reward_model
from trainer.algorithms.rollout import Rollout
from trainer.checkpointing import fingerprint
from trainer.examples import Examples, Pair, Seed
from trainer.join import Joined
from trainer.join_store import Round
from trainer.kept_reward import KeptReward
from trainer.logged_rollouts import Unset, logged_rollouts
from trainer.reading import RewardReading
from trainer.robust import smoothing
from trainer.rollouts import of_turn, sample_rollouts
from trainer.round_context import RoundContext
from trainer.trained import Trained

log = logging.getLogger(__name__)


class PolicyUpdate:
    """One round's. `left_out` counts answers that are no rollouts and prompts that get none, by reason."""

    def __init__(self, context: RoundContext, claimed: Round, policy: str, critique: str) -> None:
        """`policy` and `critique` are the versions to begin from."""
        self._context, self._claimed, self._policy, self._critique = context, claimed, policy, critique
        self._start = context.registry.path(policy)
        self.left_out: Counter[str] = Counter()

    def train(self, pairs: list[Pair], examples: Examples, joined: Sequence[Joined]) -> Trained | None:
        """None where only logged answers may teach, and none of the round's is fit to."""
        trainer, world = self._context.trainer, self._context.world
        reference = self._reference()
        imitations = [one for one in examples.imitations if len(one.sequence) <= trainer.max_tokens]
        saving = self._context.save_point(self._claimed, "policy")
        if trainer.algorithm == "dpo":
            trust = self._context.store.trust.of_round(self._claimed.id)
            dpo = replace(trainer.dpo, label_smoothing=smoothing(trust, pairs, trainer.dpo.label_smoothing))
            return world.call(train_dpo, self._start, reference, pairs, imitations, dpo, trainer.optim, saving)
        logged = self._logged(joined)
        prompts = self._prompts(examples)
        if not logged and not (trainer.samples_rollouts and prompts):
            log.warning("round %d: no answer to learn from: %s", self._claimed.id, dict(self.left_out) or "no prompts")
            return None
        sequencer = Sequencer.from_pretrained(self._start)
        reading = RewardReading(self._context, sequencer, trainer.reward.view)
        reward = self._reward(pairs, reading)

        def rollouts(turn: int, weights: dict[str, Tensor] | None) -> list[Rollout]:
            mine = of_turn(logged, turn, trainer.ppo.iterations)
            if trainer.samples_rollouts and prompts:
                mine = mine + self._context.with_services(
                    lambda services: sample_rollouts(
                        services,
                        self._context.registry,
                        self._policy,
                        prompts,
                        turn,
                        weights,
                        trainer,
                        self._claimed.key,
                    )
                )
            whole = len(mine)
            mine = [one for one in mine if len(one.sequence) <= trainer.max_tokens]
            if len(mine) < whole:
                self.left_out["too_long"] += whole - len(mine)
            read = reading([one.sequence for one in mine])
            return [replace(one, judged=judged) for one, judged in zip(mine, read, strict=True)]

        begin, local = (self._start, reference, reward, imitations), {"rollouts": rollouts}
        if trainer.algorithm == "grpo":
            trained = world.call(train_grpo, *begin, trainer.grpo, trainer.optim, saving, local=local)
        else:
            each = trainer.ppo.rollouts if trainer.samples_rollouts and prompts else 0
            turns = trainer.ppo.iterations
            planned = [len(of_turn(logged, turn, turns)) + each for turn in range(turns)]
            trained = world.call(train_ppo, *begin, trainer.ppo, trainer.optim, saving, planned, local=local)
        for kind in ("max", "mean"):
            found = trained.metrics.get(f"{trainer.algorithm}_mismatch_{kind}_first")
            if found is not None:
                metrics.LOGPROB_MISMATCH.labels(kind).set(found)
        return replace(trained, metrics=reward.metrics | trained.metrics)

    def _prompts(self, examples: Examples) -> list[Seed]:
        """What answers are sampled to: each prompt once, if it leaves room for one."""
        prompts = list({seed.prompt: seed for seed in examples.seeds}.values())
        fitting = [seed for seed in prompts if len(seed.prompt) < self._context.trainer.max_tokens]
        if self._context.trainer.samples_rollouts and len(fitting) < len(prompts):
            self.left_out["too_long"] += len(prompts) - len(fitting)
        return fitting

    def _reference(self) -> Path:
        if self._context.trainer.reference == "parent":
            return self._start
        base = self._context.registry.manifest(self._policy).base or self._policy
        return self._context.registry.path(base)

    def _reward(self, pairs: list[Pair], reading: RewardReading) -> TrainedReward:
        trainer = self._context.trainer
        start = self._context.registry.path(self._critique) if trainer.reward.start == "critique" else self._start
        saving = self._context.save_point(self._claimed, "reward")
        config, optim, call = trainer.reward, trainer.optim, self._context.world.call
        made_of = fingerprint("reward", start, self._critique, pairs, config, optim)
        kept = KeptReward(saving.folder.with_name("finished-reward"), made_of)
        if not saving.every:
            return call(train_reward_model, start, pairs, config, optim, saving, reading.pairs(pairs))
        views = kept.views(lambda: reading.pairs(pairs))
        reward = kept.reward(start, lambda: call(train_reward_model, start, pairs, config, optim, saving, views))
        log.info("reward model: %s", reward.metrics)
        return reward

    def _logged(self, joined: Sequence[Joined]) -> list[Rollout]:
        trainer = self._context.trainer
        if trainer.algorithm != "ppo" or trainer.ppo.source == "engine":
            return []
        versions = self._context.announcements.promotions("policy") or [self._policy]
        layout = SequenceLayout.load(self._start)
        unset = Unset.of(self._start, self._context.settings.engine_max_tokens)
        found, unfit = logged_rollouts((one.response for one in joined), versions, layout, trainer, unset)
        self.left_out += unfit
        log.info("%d logged answers are rollouts, %d are not: %s", len(found), unfit.total(), unfit)
        return found
