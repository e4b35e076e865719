"""Continuous batching over a transformers causal LM: slots, scheduler, sampler, grammar masks, weights per version."""

from services.policy.engine.checkpoint import WeightSet, load_checkpoint
from services.policy.engine.engine import End, Engine
from services.policy.engine.request import Request, Sampling
from services.policy.engine.runner import EngineRunner

__all__ = ["End", "Engine", "EngineRunner", "Request", "Sampling", "WeightSet", "load_checkpoint"]
