"""Throughput and latency over concurrency, one row of panels per model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

_PANELS = (
    ("tokens_per_second", 1.0, "tokens per second"),
    ("ttft_p50", 1e3, "time to first token, p50, ms"),
    ("itl_p99", 1e3, "inter-token latency, p99, ms"),
    ("message_gap_p99", 1e3, "gap between messages, p99, ms"),
)
_COLOURS = ("tab:gray", "tab:blue", "tab:green", "tab:red", "tab:purple")


def draw(report: dict[str, Any], path: Path) -> None:
    """Solid lines are greedy, dashed ones sampled; dotted are the floors."""
    models = report["models"]
    figure, axes = pyplot.subplots(
        len(models), len(_PANELS), figsize=(5 * len(_PANELS), 4 * len(models)), squeeze=False, layout="constrained"
    )
    for row, (name, model) in zip(axes, models.items(), strict=True):
        for axis, (key, scale, title) in zip(row, _PANELS, strict=True):
            _panel(axis, model, key, scale)
            axis.set(title=f"{name}: {title}", xlabel="concurrent streams", xscale="log", yscale="log")
            ticks = [int(streams) for streams in report["plan"]["streams"]]
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    handles = {label: handle for row in axes for handle, label in zip(*row[0].get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(axis: Axes, model: dict[str, Any], key: str, scale: float) -> None:
    for colour, (contender, modes) in zip(_COLOURS, model["contenders"].items(), strict=False):
        for mode, points in modes.items():
            known = [(int(streams), point[key] * scale) for streams, point in points.items() if point[key]]
            if known:
                style = "-" if mode == "greedy" else "--"
                axis.plot(*zip(*known, strict=True), style, marker="o", color=colour, label=f"{contender}, {mode}")
    if key == "tokens_per_second" and "floors" in model:
        for label, kind, figure, colour in (
            ("floor: Hugging Face forward", "hugging_face_forward", "decode", "black"),
            ("floor: matmuls (torch)", "matmuls", "mkl", "tab:orange"),
            ("floor: matmuls (oneDNN, packed)", "matmuls", "onednn", "gold"),
        ):
            floors = [(int(batch), floor[kind][figure]) for batch, floor in model["floors"].items()]
            axis.plot(*zip(*floors, strict=True), ":", marker=".", color=colour, label=label)
