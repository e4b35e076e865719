"""Settings of the learner: environment variables with the prefix `ANYLOOP_TRAINER_`.

Addresses and folders are in `anyloop.config.Settings`.
"""

from dataclasses import fields
from typing import Literal, TypeVar

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from anyloop.approval import RIGHT_PATTERN, RIGHT_TEXT, approves
from trainer.algorithms.dpo import DPOConfig
from trainer.algorithms.feedback_modelling import FeedbackModellingConfig
from trainer.algorithms.grpo import GRPOConfig
from trainer.algorithms.losses import Aggregation, Scale
from trainer.algorithms.ppo import PPOConfig
from trainer.algorithms.reward_model import RewardConfig, View
from trainer.optimisation import OptimConfig
from trainer.robust import RobustConfig

Part = TypeVar("Part")


class TrainerSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="ANYLOOP_TRAINER_", env_file=".env", extra="ignore")

    algorithm: Literal["dpo", "ppo", "grpo"] = Field("dpo", description="How the pairs move the policy")

    # When a round starts
    min_feedback: int = Field(64, ge=1, description="Joined feedback events that start a round once the log is quiet")
    quiet_s: float = Field(5.0, ge=0, description="Seconds without new feedback that count as quiet")
    max_wait_s: float = Field(600.0, gt=0, description="Start with what is there when the oldest has waited so long")
    poll_s: float = Field(1.0, gt=0)
    max_feedback: int = Field(2000, ge=1, description="Feedback events one round takes; the rest waits for the next")
    max_per_principal: int = Field(1000, ge=1, description="Feedback events one principal may bring into a round")
    retention_days: float = Field(
        30.0,
        gt=0,
        description="How long used events stay in the trainer's own state; responses no shorter than join_window_h",
    )
    dedupe_days: float = Field(
        90.0,
        gt=0,
        description="How long a used feedback id is remembered; no shorter than the log keeps its events. What was"
        " consumed and is older does not count when the log is read again",
    )
    round_attempts: int = Field(5, ge=1, description="A round that fails so often is closed as failed")
    retry_s: float = Field(5.0, ge=0, description="First pause before a failed round is tried again; doubles")

    # Feedback that comes early, late or never joins
    join_window_h: float = Field(168.0, gt=0, description="Hours between a response and its feedback, either way round")
    orphan_after_s: float = Field(
        3600.0, gt=0, description="Feedback unjoined for so long is reported; it may join yet"
    )
    late_feedback: Literal["join", "drop", "dead_letter"] = Field(
        "join",
        description="Feedback beyond the window: used all the same (one that joins nothing waits for dedupe_days),"
        " left out, or sent to the dead letters",
    )

    # What words and numbers mean
    right_text: str = Field(RIGHT_TEXT, description="What the critique model says of a good answer")
    right_pattern: str = Field(
        RIGHT_PATTERN,
        description="A critique whose last sentence matches this (lower case) says that the answer is right",
    )
    right_rating: float = Field(0.75, ge=0, le=1, description="A rating (overall, or the mean) from here up says right")
    wrong_rating: float = Field(0.5, ge=0, le=1, description="A rating below this says wrong")
    max_versions_behind: int = Field(4, ge=0, description="Answers of older policies are stale")
    stale: Literal["drop", "downweight"] = Field(
        "drop", description="Stale answers make no pairs and no rollouts, or weigh what staleness_decay leaves of them"
    )
    staleness_decay: float = Field(0.8, gt=0, le=1, description="Weight of a pair per version its answer is behind")

    # Feedback modelling
    critique_lr: float = Field(FeedbackModellingConfig.lr, gt=0)
    critique_epochs: int = Field(
        FeedbackModellingConfig.epochs, ge=0, description="At most; early stopping on held-out critiques ends it sooner"
    )
    critique_batch: int = Field(FeedbackModellingConfig.batch, ge=1, description="Examples per optimiser step")
    critique_held_out: float = Field(
        FeedbackModellingConfig.held_out, ge=0, lt=1, description="Share of critiques that only measure"
    )
    critique_patience: int = Field(
        FeedbackModellingConfig.patience, ge=1, description="Epochs without a better held-out loss before stopping"
    )
    critique_replay: float = Field(
        FeedbackModellingConfig.replay, ge=0, description="Earlier rounds' critiques mixed in, per new one"
    )
    critique_anchor: float = Field(
        FeedbackModellingConfig.anchor, ge=0, description="Logged answers mixed in, per critique: keeps perception"
    )
    critique_probe: int = Field(48, ge=0, description="Held-out answers the new critique model is asked about")

    # Self-improving
    filter: Literal["none", "critique", "reward"] = Field(
        "critique",
        description="Which refinements become pairs: all; those that the critique model approves; or those that a"
        " reward model, trained on people's pairs and on confident ones, puts filter_margin above the answer",
    )
    filter_margin: float = Field(0.5, description="Least margin of the reward filter; 0.5 is odds of 1.6 to 1")
    fresh_per_prompt: int = Field(1, ge=0, description="New answers sampled per logged prompt")
    max_fresh: int = Field(400, ge=0, description="New answers sampled per round")
    max_pairs: int = Field(
        600,
        ge=1,
        description="Pairs trained on per round; people's own come first, what is beyond is left out and counted",
    )
    min_pairs: int = Field(
        4, ge=1, description="Fewer pairs than this make no candidate: the feedback waits until there is more of it"
    )
    concurrency: int = Field(32, ge=1, description="Requests in flight to the serving engines")
    sample_temperature: float = Field(1.0, ge=0)
    critique_temperature: float = Field(0.0, ge=0)
    refine_temperature: float = Field(0.0, ge=0)
    max_answer_tokens: int = Field(96, ge=1)
    max_critique_tokens: int = Field(96, ge=1)
    request_timeout_s: float = Field(120.0, gt=0)

    # Whose word counts, and how much
    max_principal_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Most of the weight of a round's critiques, and of its pairs, that rests on one principal; where"
        " fewer than 1/share speak, an equal part; it gives way before an example loses more than 3/4 of its weight",
    )
    robust_share: float = Field(
        RobustConfig.share,
        ge=0,
        le=0.5,
        description="Share of statements that may be wrong or hostile: as many of the least believed are left out, the"
        " rest weighs what it is believed; 0 believes everybody",
    )
    robust_folds: int = Field(
        RobustConfig.folds,
        ge=0,
        description="Critique models learned to check statements against those of others; 0 asks the serving one alone",
    )

    # Rounds that do not forget
    replay_pairs: float = Field(0.25, ge=0, description="Earlier rounds' pairs trained on again, per new one")
    replay_decay: float = Field(0.7, gt=0, le=1, description="Weight of a replayed pair per round that it is old")
    replay_rounds: int = Field(4, ge=1, description="Rounds whose pairs are kept for replay and for watching")
    balance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="How far the weight of pairs is evened out over kinds of work (the media of prompt and answer): 1"
        " makes all equal",
    )
    forgetting: Literal["off", "watch", "average"] = Field(
        "watch",
        description="Measure held-out pairs per kind of work before and after training; average also goes back towards"
        " the parent's weights as far as it takes until none got worse",
    )
    forgetting_held_out: float = Field(
        0.1, ge=0, lt=1, description="Share of pairs that only watch, in rounds of a hundred pairs or more"
    )

    # Optimisation, shared
    reference: Literal["parent", "base"] = Field("parent", description="Which weights the policy is held close to")
    max_tokens: int = Field(384, ge=8, description="Longer sequences are left out, and counted")
    batch_tokens: int = Field(OptimConfig.batch_tokens, ge=8, description="Tokens per forward pass, padding included")
    shared_prefix: Literal["auto", "off"] = Field(
        OptimConfig.shared_prefix,
        description="One pass over a prompt for all its answers, where the model is proven to compute the same",
    )
    weight_decay: float = Field(OptimConfig.weight_decay, ge=0)
    clip_norm: float = Field(OptimConfig.clip_norm, gt=0)
    warmup: float = Field(
        OptimConfig.warmup, ge=0, lt=1, description="Share of the steps with a rising rate; then cosine to zero"
    )
    seed: int = OptimConfig.seed

    # Scale
    zero_stage: int = Field(OptimConfig.zero_stage, ge=0, le=3, description="DeepSpeed ZeRO stage when WORLD_SIZE > 1")
    offload: Literal["none", "optimizer", "parameters"] = Field(
        OptimConfig.offload, description="What DeepSpeed keeps in the host's memory; parameters need ZeRO stage 3"
    )
    precision: Literal["fp32", "bf16"] = Field(
        OptimConfig.precision, description="Of forward and backward passes; weights and optimiser state stay fp32"
    )
    activation_checkpointing: bool = Field(
        OptimConfig.activation_checkpointing, description="Compute layers again in the backward pass to save memory"
    )
    lora_rank: int = Field(OptimConfig.lora_rank, ge=0, description="Train adapters of this rank; 0: all weights")
    lora_alpha: int = Field(OptimConfig.lora_alpha, ge=1, description="An adapter counts alpha / rank times")
    lora_targets: str = Field(
        OptimConfig.lora_targets, min_length=1, description="Layers with an adapter: all-linear, or names with commas"
    )
    checkpoint_every: int = Field(
        100,
        ge=0,
        description="Steps between checkpoints of a training under way, which a killed trainer goes on from; 0: none",
    )

    # DPO
    dpo_lr: float = Field(DPOConfig.lr, gt=0)
    dpo_beta: float = Field(DPOConfig.beta, gt=0)
    dpo_epochs: int = Field(DPOConfig.epochs, ge=1)
    dpo_batch: int = Field(DPOConfig.batch, ge=1, description="Pairs per optimiser step")
    dpo_label_smoothing: float = Field(
        DPOConfig.label_smoothing, ge=0, lt=0.5, description="Assumed share of pairs the wrong way round"
    )
    dpo_reference_free: bool = Field(
        DPOConfig.reference_free, description="Margins of the policy alone: nothing holds it to a reference"
    )
    dpo_length_normalised: bool = Field(
        DPOConfig.length_normalised, description="Log-probabilities per token, not summed; wants a larger dpo_beta"
    )
    dpo_sft_coefficient: float = Field(
        DPOConfig.sft_coefficient, ge=0, description="Weight of the likelihood of chosen answers beside DPO"
    )

    # Reward model
    reward_lr: float = Field(RewardConfig.lr, gt=0)
    reward_epochs: int = Field(RewardConfig.epochs, ge=1)
    reward_batch: int = Field(RewardConfig.batch, ge=1, description="Pairs per optimiser step")
    reward_regularisation: float = Field(RewardConfig.regularisation, ge=0)
    reward_view: View = Field(
        RewardConfig.view,
        description="What it reads: prompt and answer, or a critique of them by the critique model too",
    )
    reward_start: Literal["policy", "critique"] = Field(RewardConfig.start, description="The weights it begins from")

    # PPO
    ppo_source: Literal["engine", "logged", "both"] = Field(
        PPOConfig.source, description="Answers sampled for training, fresh ones of the round's that users got, or both"
    )
    ppo_actor_lr: float = Field(PPOConfig.actor_lr, gt=0)
    ppo_critic_lr: float = Field(PPOConfig.critic_lr, gt=0)
    ppo_iterations: int = Field(PPOConfig.iterations, ge=1, description="Rollout and update turns per round")
    ppo_rollouts: int = Field(PPOConfig.rollouts, ge=1, description="Answers sampled per turn")
    ppo_epochs: int = Field(PPOConfig.epochs, ge=1, description="Passes over each turn's rollouts")
    ppo_batch: int = Field(PPOConfig.batch, ge=1, description="Rollouts per optimiser step")
    ppo_kl: float = Field(PPOConfig.kl, ge=0)
    ppo_gamma: float = Field(PPOConfig.gamma, gt=0, le=1)
    ppo_lambda: float = Field(PPOConfig.lambda_, gt=0, le=1)
    ppo_whiten: bool = Field(PPOConfig.whiten, description="Advantages of a turn to mean 0 and variance 1")
    ppo_clip: float = Field(PPOConfig.clip, gt=0)
    ppo_value_clip: float = Field(PPOConfig.value_clip, gt=0)
    ppo_critic: Literal["own", "shared"] = Field(
        PPOConfig.critic, description="A value model of its own, or a head on the actor's backbone: one pass for both"
    )
    ppo_value_coefficient: float = Field(
        PPOConfig.value_coefficient, ge=0, description="Weight of the value loss where the critic is shared"
    )
    ppo_sft_coefficient: float = Field(
        PPOConfig.sft_coefficient, ge=0, description="Weight of the likelihood of chosen answers beside PPO"
    )

    # GRPO
    grpo_lr: float = Field(GRPOConfig.lr, gt=0)
    grpo_iterations: int = Field(GRPOConfig.iterations, ge=1, description="Rollout and update turns per round")
    grpo_prompts: int = Field(GRPOConfig.prompts, ge=1, description="Prompts per turn")
    grpo_group: int = Field(GRPOConfig.group, ge=2, description="Answers per prompt, compared with each other")
    grpo_epochs: int = Field(GRPOConfig.epochs, ge=1, description="Passes over each turn's answers")
    grpo_batch: int = Field(GRPOConfig.batch, ge=1, description="Prompts per optimiser step, with all their answers")
    grpo_scale: Scale = Field(
        GRPOConfig.scale, description="Advantages over the standard deviation of their group, of the turn, or as is"
    )
    grpo_loss: Aggregation = Field(
        GRPOConfig.loss,
        description="Token losses: means of each answer (grpo), of the step (bnpo), of the turn (dapo), or sums over"
        " the token limit (dr_grpo)",
    )
    grpo_kl: float = Field(GRPOConfig.kl, ge=0, description="Weight of KL(policy || reference), per token")
    grpo_kl_corrected: bool = Field(
        GRPOConfig.kl_corrected, description="Weigh the KL by the importance ratio: its gradient is then unbiased"
    )
    grpo_clip_low: float = Field(GRPOConfig.clip_low, gt=0, lt=1)
    grpo_clip_high: float = Field(GRPOConfig.clip_high, gt=0, description="0.28 in DAPO: unlikely tokens may rise")
    grpo_sft_coefficient: float = Field(
        GRPOConfig.sft_coefficient, ge=0, description="Weight of the likelihood of chosen answers beside GRPO"
    )

    # Publishing
    swap_timeout_s: float = Field(120.0, gt=0, description="How long a replica may take to serve a new critique model")
    gate_timeout_s: float = Field(600.0, ge=0, description="How long a round waits for the gate; 0 does not wait")
    rollout_timeout_s: float = Field(
        3600.0,
        ge=0,
        description="How long a round waits for the rollout of a candidate that the gate approved"
        " (ANYLOOP_GATE_PROMOTION=rollout); feedback gathers meanwhile",
    )
    keep_checkpoints: int = Field(20, ge=2, description="Versions kept per lineage")

    @property
    def critique(self) -> FeedbackModellingConfig:
        return self._part(FeedbackModellingConfig, "critique_")

    @property
    def robust(self) -> RobustConfig:
        return self._part(RobustConfig, "robust_")

    @property
    def dpo(self) -> DPOConfig:
        return self._part(DPOConfig, "dpo_")

    @property
    def reward(self) -> RewardConfig:
        return self._part(RewardConfig, "reward_")

    @property
    def ppo(self) -> PPOConfig:
        return self._part(PPOConfig, "ppo_")

    @model_validator(mode="after")
    def _scale_fits(self) -> "TrainerSettings":
        _ = self.optim  # refuses what does not go together now, not when a round trains
        return self

    @model_validator(mode="after")
    def _ratings_fit(self) -> "TrainerSettings":
        if self.wrong_rating > self.right_rating:
            raise ValueError(
                f"a rating below wrong_rating ({self.wrong_rating:g}) says wrong and one from right_rating"
                f" ({self.right_rating:g}) up says right: wrong_rating must not be above right_rating"
            )
        return self

    @property
    def grpo(self) -> GRPOConfig:
        return self._part(GRPOConfig, "grpo_")

    @property
    def samples_rollouts(self) -> bool:
        """Whether the algorithm learns from answers that the engine samples for it."""
        return self.algorithm == "grpo" or (self.algorithm == "ppo" and self.ppo_source != "logged")

    @property
    def optim(self) -> OptimConfig:
        return self._part(OptimConfig, "")

    def _part(self, kind: type[Part], prefix: str) -> Part:
        """The flat settings with `prefix` as a configuration of their own (`lambda_` is the setting `..._lambda`)."""
        names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        return kind(**{name: getattr(self, prefix + name.rstrip("_")) for name in names})

    @property
    def late_after_s(self) -> float | None:
        """How long after its response feedback still counts; None where that does not matter."""
        return None if self.late_feedback == "join" else 3600 * self.join_window_h

    def says_right(self, critique: str) -> bool:
        """Whether a critique approves of the answer: its last sentence gives the verdict."""
        return approves(critique, self.right_text, self.right_pattern)
