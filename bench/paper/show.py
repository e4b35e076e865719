"""The same figures on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from anyloop.world import SUBTASKS
from bench.paper.markdown import gain, percent
from bench.paper.progress import duration
from bench.paper.verdicts import points, times

_WORDS = {True: "[green]met", False: "[red]not met", None: "open"}


def show(document: Mapping[str, Any], console: Console) -> None:
    parts = (_success, _gains, _ratios, _ablation, _rounds, _costs, _verdicts)
    tables = [part(document) for part in parts]
    console.print(Group(*(one for one in tables if one.row_count)))
    if document["missing"]:
        total = len(document["missing"]) + len(document["cells"])
        console.print(f"{len(document['missing'])} of {total} cells have no result yet; run again to go on")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at else "left", no_wrap=True)
    return table


def _success(document: Mapping[str, Any]) -> Table:
    table = _table("Right answers, percent", "", *SUBTASKS, "mean", "seeds")
    for row in document["main"]:
        shares = (percent(row["success"][name]) for name in (*SUBTASKS, "mean"))
        table.add_row(row["method"], *shares, str(len(row["seeds"])))
    return table


def _gains(document: Mapping[str, Any]) -> Table:
    table = _table("Gain over the base, points", "", *SUBTASKS, "mean")
    for row in document["main"]:
        if row["gain"]:
            table.add_row(row["method"], *(gain(row["gain"][name]) for name in (*SUBTASKS, "mean")))
    return table


def _ratios(document: Mapping[str, Any]) -> Table:
    table = _table("Language over binary", "", "language", "binary", "ratio")
    for row in document["ratios"]:
        found = times(row["ratio"]) if row["ratio"] else "none: no binary gain"
        table.add_row(
            " + ".join(row["language"]), points(row["language_gain"]), points(row["binary_gain"]), escape(found)
        )
    return table


def _ablation(document: Mapping[str, Any]) -> Table:
    groups = ("mean", "generation", "understanding")
    table = _table("Gain by annotations", "", "share", "annotations", *groups, "mean over all binary")
    for row in document["ablation"]:
        over = row.get("over_all_binary") or {}
        gains = (gain(row["gain"][name]) for name in groups)
        table.add_row(row["method"], f"{row['share']:.0%}", str(row["annotations"]), *gains, gain(over.get("mean")))
    return table


def _rounds(document: Mapping[str, Any]) -> Table:
    table = _table("Rounds", "", *SUBTASKS, "mean", "over the one before")
    for row in document["rounds"]:
        shares = (percent(row["success"][name]) for name in (*SUBTASKS, "mean"))
        table.add_row(str(row["round"]), *shares, gain((row["step"] or {}).get("mean")))
    return table


def _costs(document: Mapping[str, Any]) -> Table:
    table = _table("Costs, one thread", "", "time", "with shared work", "peak memory")
    for row in document["costs"]:
        spent = (duration(row["seconds"]), duration(row["seconds_with_shared"]))
        table.add_row(row["method"], *spent, f"{row['peak_rss_bytes'] / 2**20:.0f} MiB")
    return table


def _verdicts(document: Mapping[str, Any]) -> Table:
    table = Table(title="Targets", title_justify="left", box=None, padding=(0, 1))
    for column in ("", "target", "measured"):
        table.add_column(column, overflow="fold")
    for row in document["verdicts"]:
        word = _WORDS[row["met"]] + ("" if row["sure"] or row["met"] is None else ", not sure")
        table.add_row(word, row["target"], escape(row["measured"]))
    return table
