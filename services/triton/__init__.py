"""The Triton model repository of AnyLoop, and the launcher of the Triton binary that the PyPI wheel carries."""

from services.triton.launcher import TritonError, TritonPorts, TritonServer
from services.triton.repository import build_repository, model_config

__all__ = ["TritonError", "TritonPorts", "TritonServer", "build_repository", "model_config"]
