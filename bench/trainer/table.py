"""The report as a table for people, the verdict on the aims, and whether it is a failure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.trainer.plan import DPO, ONLINE, OURS, PEER

AIMS = {DPO: 1.5, ONLINE: 2.0}  # times the peer's samples per second
BUSY = 0.2  # wall and CPU ratios further apart than this, of the smaller one: other work on the machine decided
TOLERANCE = 1e-3  # of losses (absolute) and gradient norms (relative) of the two sides, fp32


@dataclass(frozen=True)
class Comparison:
    """Our row beside the peer's of the same model and kind."""

    model: str
    kind: str
    speedup: float
    cpu_speedup: float  # by CPU seconds, which other work on the machine does not change
    speedup_with_preparation: float  # one epoch: the reference's pass over each pair counts
    memory: float  # our whole peak over the peer's
    memory_above_base: float  # the same of what is above imports and model
    difference: str  # why the two did not compute the same; empty: they did
    compared: bool

    @property
    def met(self) -> bool:
        return self.verdict == "met"

    @property
    def verdict(self) -> str:
        """`met` or `missed`; or why the figures say neither."""
        if self.difference:
            return "not the same computation"
        if not self.compared:
            return "not compared"
        if abs(self.speedup - self.cpu_speedup) > BUSY * min(self.speedup, self.cpu_speedup):
            return "busy machine"
        return "met" if self.speedup >= AIMS[self.kind] else "missed"


def comparisons(rows: list[dict[str, Any]]) -> list[Comparison]:
    """For every model and kind that both sides ran."""
    found = []
    for ours in rows:
        for peer in rows:
            same = (ours["model"], ours["kind"]) == (peer["model"], peer["kind"])
            if same and ours["contender"] == OURS and peer["contender"] == PEER:
                found.append(_compare(ours, peer))
    return found


def step_seconds(row: dict[str, Any]) -> float:
    return statistics.median(row["steps_s"])


def samples_per_second(row: dict[str, Any]) -> float:
    return float(row["samples"]) / step_seconds(row)


def failed(report: dict[str, Any]) -> bool:
    """True when a contender did not run, or the two sides did not compute the same. A missed aim is a finding."""
    return bool(report["errors"]) or any(one.difference for one in comparisons(report["rows"]))


def show(report: dict[str, Any], console: Console) -> None:
    table = Table(title="Training steps, one thread, fp32", title_justify="left")
    for title in ("model", "step", "contender"):
        table.add_column(title, no_wrap=True)
    for title in (
        "samples",
        "tokens",
        "s/step",
        "samples/s",
        "tokens/s",
        "before, s",
        "phases, s",
        "peak MiB",
        "above base MiB",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("losses | gradient norms", no_wrap=True)
    for row in report["rows"]:
        seconds = step_seconds(row)
        table.add_row(
            row["model"],
            row["kind"],
            row["contender"],
            str(row["samples"]),
            f"{row['tokens']:.0f}",
            f"{seconds:.2f}",
            f"{row['samples'] / seconds:.2f}",
            f"{row['tokens'] / seconds:.0f}",
            f"{row['prepare_s']:.2f}" if row["prepare_s"] else "-",
            " ".join(f"{name} {statistics.median(each):.2f}" for name, each in row["phases"].items()) or "-",
            f"{row['peak_rss'] / 2**20:.0f}",
            f"{(row['peak_rss'] - row['base_rss']) / 2**20:.0f}",
            _witness(row),
        )
    console.print(table)
    console.print(f"[dim]{report['note']}[/]")
    for one in comparisons(report["rows"]):
        style, word = "green" if one.met else "yellow", one.verdict
        same = one.difference or ("losses and gradients agree" if one.compared else "samplers differ: not compared")
        console.print(
            f"{one.model} {one.kind}: [{style}]{one.speedup:.2f} x TRL ({word}: {AIMS[one.kind]:.1f} x)[/], "
            f"{one.cpu_speedup:.2f} x by CPU time, with what comes before {one.speedup_with_preparation:.2f} x, "
            f"memory: whole peak {one.memory:.2f} x, above base {one.memory_above_base:.2f} x; {same}"
        )
    for error in report["errors"]:
        console.print(f"[bold red]{error['model']} {error['kind']} of {error['contender']}[/]: {error['error']}")


def _witness(row: dict[str, Any]) -> str:
    if row["fixed_loss"] is not None:
        return f"{row['fixed_loss']:.6f} | {row['fixed_gradient_norm']:.5f}"
    if row["kind"] != DPO:
        return "-"
    losses = ", ".join(f"{loss:.5f}" for loss in row["losses"][:3])
    return f"{losses} | {row['gradient_norms'][0]:.4f}"


def _compare(ours: dict[str, Any], peer: dict[str, Any]) -> Comparison:
    def busy(row: dict[str, Any]) -> float:
        return statistics.median(row["cpu_s"]) / float(row["samples"])

    def whole(row: dict[str, Any]) -> float:
        """Seconds of a step and its share of what comes before all of them."""
        return step_seconds(row) + float(row["prepare_s"]) / max(len(row["losses"]), 1)

    difference, compared = "", True
    if ours["kind"] == DPO:
        pairs = list(zip(ours["losses"], peer["losses"], strict=False))
        norms = list(zip(ours["gradient_norms"], peer["gradient_norms"], strict=False))
    elif ours["fixed_loss"] is not None and peer["fixed_loss"] is not None:
        pairs = [(ours["fixed_loss"], peer["fixed_loss"])]
        norms = [(ours["fixed_gradient_norm"], peer["fixed_gradient_norm"])]
    else:
        pairs, norms, compared = [], [], False
    compared = compared and bool(pairs)
    for mine, theirs in pairs:
        if abs(mine - theirs) > TOLERANCE:
            difference = f"losses differ: {mine:.6f} and {theirs:.6f}"
    for mine, theirs in norms:
        if abs(mine - theirs) > TOLERANCE * theirs:
            difference = difference or f"gradient norms differ: {mine:.6f} and {theirs:.6f}"
    return Comparison(
        ours["model"],
        ours["kind"],
        step_seconds(peer) / step_seconds(ours) * ours["samples"] / peer["samples"],
        busy(peer) / busy(ours),
        whole(peer) / whole(ours) * ours["samples"] / peer["samples"],
        ours["peak_rss"] / peer["peak_rss"],
        (ours["peak_rss"] - ours["base_rss"]) / max(peer["peak_rss"] - peer["base_rss"], 1),
        difference,
        compared,
    )
