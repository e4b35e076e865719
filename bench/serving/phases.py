"""Where the time of a decode step goes: the engine's own steps under torch's profiler.

Every tensor operation is sorted by what it is and by whether the sampler called it; what a step takes beyond its
operations is Python. The profiler slows Python down, so that share is taken against a step timed without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from bench.serving.inprocess import OpenEngine, decode_seconds, decoding
from services.policy.engine import engine as engine_module
from services.policy.engine.forward.decode_attention import DecodeAttention

_SAMPLING = "bench: sampling"
_ATTENTION = ("attention", "aten::bmm", "aten::baddbmm", "softmax")
_MATMUL = ("aten::mm", "aten::addmm", "aten::linear", "mkldnn")


def profile_phases(
    opened: OpenEngine, prompts: list[list[int]], steps: int, sampling: dict[str, Any]
) -> dict[str, Any]:
    """Milliseconds of a decode step by phase, at a batch of all `prompts`."""
    plain = decode_seconds(opened, prompts, steps, sampling)
    by_phase = _operations(opened, prompts, steps, sampling)
    operations = sum(by_phase.values())
    milliseconds = {phase: seconds / steps * 1e3 for phase, seconds in by_phase.items()}
    milliseconds["python"] = max(0.0, plain - operations / steps) * 1e3
    return {"streams": len(prompts), "step_ms": plain * 1e3, "phases_ms": milliseconds}


def _operations(opened: OpenEngine, prompts: list[list[int]], steps: int, sampling: dict[str, Any]) -> dict[str, float]:
    """Seconds of tensor operations by phase, over `steps` steps."""
    with (
        decoding(opened, prompts, steps, sampling),
        _marked(engine_module, "sample", _SAMPLING),
        _marked(DecodeAttention, "__call__", "bench: compiled attention"),  # no operation of torch
        profile(activities=[ProfilerActivity.CPU]) as profiler,
    ):
        for _ in range(steps):
            opened.engine.step()
    phases = {"matmuls": 0.0, "attention": 0.0, "other operations": 0.0, "sampling": 0.0}
    for event in profiler.events():
        if event.name != _SAMPLING:
            phases[_phase(event)] += event.self_cpu_time_total * 1e-6
    return phases


def _phase(event: Any) -> str:
    callers = []
    caller = event
    while caller is not None:
        callers.append(caller.name.lower())
        caller = caller.cpu_parent
    if _SAMPLING in callers:
        return "sampling"
    if any(part in name for name in callers for part in _ATTENTION):
        return "attention"
    return "matmuls" if any(part in callers[0] for part in _MATMUL) else "other operations"


@contextmanager
def _marked(holder: Any, name: str, label: str) -> Iterator[None]:
    """Calls of the function appear in the profile, under `label`."""
    original = getattr(holder, name)

    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(label):
            return original(*args, **kwargs)

    setattr(holder, name, marked)
    try:
        yield
    finally:
        setattr(holder, name, original)
