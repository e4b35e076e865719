"""The curves and bars of the page, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from anyloop.world import SUBTASKS

# Binary feedback in blues, language feedback in oranges: also told apart in grey.
_COLOURS = {
    "base": "#888888",
    "dpo": "#9ecae1",
    "ppo": "#4292c6",
    "grpo": "#2171b5",
    "best-of-n": "#c6dbef",
    "llf-dpo": "#f16913",
    "llf-ppo": "#d94801",
    "llf-grpo": "#a63603",
    "llf-best-of-n": "#fdae6b",
}
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "anyloop",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(document: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Writes what there are figures for: name -> file name in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for name, (rows, paint) in {
        "gains": ([row for row in document["main"] if row["gain"]], _gains),
        "annotations": (document["ablation"], _annotations),
        "rounds": (document["rounds"], _rounds),
    }.items():
        if rows:
            drawn[name] = f"paper-{name}.svg"
            with pyplot.rc_context(_STYLE):
                paint(rows, folder / drawn[name])
    return drawn


def _gains(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    figure, axis = pyplot.subplots(figsize=(10, 3.6), layout="constrained")
    columns = ["mean", *SUBTASKS]
    width = 0.8 / len(rows)
    for at, row in enumerate(rows):
        gains = [row["gain"][name] for name in columns]
        places = [place + width * (at - (len(rows) - 1) / 2) for place in range(len(columns))]
        axis.bar(
            places,
            [100 * gain["mean"] for gain in gains],
            width,
            yerr=_errors(gains),
            color=_COLOURS[row["method"]],
            error_kw={"lw": 0.6, "ecolor": "#333333"},
            label=row["method"],
        )
    axis.set_xticks(range(len(columns)), columns)
    axis.axhline(0, color="black", lw=0.8)
    axis.axvline(0.5, color="#bbbbbb", lw=0.8)
    axis.set_ylabel("gain over the base, points")
    axis.legend(ncols=len(rows), fontsize="small", loc="upper center", bbox_to_anchor=(0.5, 1.12), frameon=False)
    _save(figure, path)


def _annotations(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    panels = ("mean", "generation", "understanding")
    figure, axes = pyplot.subplots(1, len(panels), figsize=(10, 3.2), sharey=True, layout="constrained")
    for axis, panel in zip(axes, panels, strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = sorted((row for row in rows if row["method"] == method), key=lambda row: int(row["annotations"]))
            _line(axis, [row["annotations"] for row in mine], [row["gain"][panel] for row in mine], method)
        axis.set(title=panel, xlabel="annotations by people", xlim=(0, None))
        axis.axhline(0, color="black", lw=0.8)
    axes[0].set_ylabel("gain over the base, points")
    axes[0].legend(fontsize="small", frameon=False)
    _save(figure, path)


def _rounds(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    figure, axis = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    numbers = [row["round"] for row in rows]
    for name in SUBTASKS:
        gains = [100 * row["gain"][name]["mean"] for row in rows]
        axis.plot([0, *numbers], [0.0, *gains], lw=0.9, alpha=0.7, label=name)
    _line(axis, numbers, [row["gain"]["mean"] for row in rows], rows[0]["method"], label=f"{rows[0]['method']}, mean")
    axis.set(xlabel="round", ylabel="gain over the base, points", xticks=[0, *numbers])
    axis.axhline(0, color="black", lw=0.8)
    axis.legend(fontsize="x-small", ncols=2, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def _line(axis: Axes, at: Sequence[int], gains: Sequence[Mapping[str, Any]], method: str, label: str = "") -> None:
    means = [100 * gain["mean"] for gain in gains]
    colour = _COLOURS[method]
    axis.errorbar(at, means, yerr=_errors(gains), color=colour, marker="o", lw=2, elinewidth=0.8, label=label or method)


def _errors(gains: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    below = [100 * max(0.0, gain["mean"] - gain["low"]) for gain in gains]
    return [below, [100 * max(0.0, gain["high"] - gain["mean"]) for gain in gains]]


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})  # the same bytes for the same figures
    pyplot.close(figure)
