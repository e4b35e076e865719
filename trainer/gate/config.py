"""Settings of the gate: environment variables with the prefix `ANYLOOP_GATE_`."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class GateSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="ANYLOOP_GATE_", env_file=".env", extra="ignore")

    suite: str = Field("", description="module:attribute of the evaluation suite, or of what makes one when called")
    samples: int = Field(1, ge=1, description="Answers per prompt and version")
    temperature: float = Field(1.0, ge=0)
    max_tokens: int = Field(96, ge=1)
    seed: int = Field(7, description="Sampling seed; the same for both versions of a comparison")
    concurrency: int = Field(32, ge=1)
    request_timeout_s: float = Field(120.0, gt=0)
    max_errors: float = Field(0.02, ge=0, le=1, description="Share of prompts that may stay unanswered")

    min_gain: float = Field(0.0, description="Mean gain over subtasks that a candidate must exceed")
    max_loss: float = Field(0.03, ge=0, description="How far below zero the interval's lower end may lie")
    confidence: float = Field(0.9, gt=0, lt=1, description="Of the bootstrap interval")
    resamples: int = Field(2000, ge=100)
    subtask_bound: float = Field(0.2, ge=0, le=1, description="A subtask may not fall by more than this")
    promotion: Literal["direct", "rollout"] = Field(
        "direct",
        description="What becomes of a candidate that passed: promoted, and every replica loads it at once; or "
        "approved, and the controller takes it from replica to replica and promotes it at the end",
    )
    retry_s: float = Field(5.0, gt=0, description="Pause before a candidate is tried again when a service is away")
