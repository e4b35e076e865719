"""How a causal LM is run for the engine: prompts read in pieces, one token decoded per row, sequences scored."""

from services.policy.engine.forward.choose import NoForward, build_forward, out_of_memory
from services.policy.engine.forward.interface import Chunk, Forward, ForwardOptions, RowCache

__all__ = ["Chunk", "Forward", "ForwardOptions", "NoForward", "RowCache", "build_forward", "out_of_memory"]
