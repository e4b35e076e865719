"""What the paper reports of its own models (arXiv 2412.15838), read off its bar charts."""

from __future__ import annotations

from dataclasses import dataclass

CLAIM = 5.83  # times the gain of binary feedback, the best of its claims


@dataclass(frozen=True)
class Panel:
    """One benchmark: the score of the base, and of each method, in its own units."""

    subtask: str
    model: str
    benchmark: str
    base: float
    scores: dict[str, float]

    def gain(self, method: str) -> float:
        return self.scores[method] - self.base


def _panel(subtask: str, model: str, benchmark: str, base: float, *scores: float) -> Panel:
    return Panel(subtask, model, benchmark, base, dict(zip(("dpo", "ppo", "llf-dpo", "llf-ppo"), scores, strict=True)))


PANELS = (
    _panel("TI2T", "LLaVA-7B", "MIA-Bench", 61.2, 64.3, 70.9, 65.3, 72.6),
    _panel("TI2T", "LLaVA-13B", "MIA-Bench", 70.4, 70.7, 72.5, 75.4, 80.2),
    _panel("TI2TI", "Chameleon-7B", "InterleavedBench", 1.63, 1.65, 1.35, 1.70, 1.78),
    _panel("T2I", "Chameleon-7B", "ImageReward", -0.80, -0.65, -0.52, -0.46, -0.44),
    _panel("TV2T", "Qwen2-VL-7B", "Video-ChatGPT", 3.00, 3.05, 3.02, 3.29, 3.04),
    _panel("TA2T", "Qwen2-Audio-7B", "AIR-Bench", 6.56, 6.62, 6.49, 6.71, 6.63),
)

# Gain over the base with 25, 50 and 75 % of the language feedback, and with all of the binary feedback.
ABLATION: dict[str, tuple[float, float, float, float]] = {
    "TA2T": (0.09, 0.10, 0.11, 0.03),
    "TI2T": (2.5, 3.7, 4.4, -3.9),
    "T2I": (0.18, 0.21, 0.26, 0.15),
    "TV2T": (0.18, 0.22, 0.27, 0.02),
    "TI2TI": (0.034, 0.048, 0.054, 0.02),
}
