"""The report as tables for people, and whether it is a failure."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from bench.log.run import LATENCY_TARGET_MS, RATIO_TARGET


def failed(report: dict[str, Any]) -> bool:
    """True when a log holds another number of events than it acknowledged."""
    return any(row["acknowledged"] != row["stored"] for row in [*report["append"], *report["outbox"]])


def show(report: dict[str, Any], console: Console) -> None:
    plan = report["plan"]
    console.print(_append(report))
    console.print(_outbox(report))
    console.print(_answer(report))
    console.print(
        f"{plan['event_bytes']} bytes an event, {plan['partitions']} partitions, one broker, median of "
        f"{plan['rounds']} rounds of {plan['seconds']:g} s (lowest and highest in log.json). One write and fsync of "
        f"that size: {report['fsyncs_per_s']:.0f}/s. Broker: {report['broker_rss_mb']:.0f} MiB. kafka-python: one "
        "idempotent producer, acks=all, keys and headers made beforehand. A Kafka broker acknowledges from its page "
        "cache, SQLite from the disk. Eight threads share one producer, ours and the bare one alike, as "
        "the requests of one process do. A slow broker sleeps 200 ms, works 50 ms, and so on.",
        style="dim",
        soft_wrap=True,
    )
    if failed(report):
        console.print("acknowledged and stored events differ: see log.json", style="bold red")


def _append(report: dict[str, Any]) -> Table:
    table = Table(title="acknowledged appends")
    for name in (
        "threads",
        "events an append",
        "log",
        "events/s",
        "of bare",
        "p50 ms",
        "p99 ms",
        "CPU us/event",
        "MiB",
    ):
        table.add_column(name, justify="left" if name == "log" else "right")
    ratio = {(row["threads"], row["batch"]): row["ratio"] for row in report["ratios"]}
    for row in report["append"]:
        value = ratio[row["threads"], row["batch"]] if row["contender"] == "kafka" else None
        table.add_row(
            str(row["threads"]),
            str(row["batch"]),
            row["contender"],
            f"{row['events_per_s']:.0f}",
            "" if value is None else _judged(f"{value:.2f}", value >= RATIO_TARGET),
            f"{row['append_p50_ms']:.2f}",
            f"{row['append_p99_ms']:.2f}",
            f"{row['cpu_us_per_event']:.0f}",
            f"{row['rss_mb']:.0f}",
        )
    return table


def _outbox(report: dict[str, Any]) -> Table:
    table = Table(title="through the outbox, eight threads")
    for name in ("log", "fsync", "accepted/s", "in the log/s", "CPU us/event", "MiB"):
        table.add_column(name, justify="left" if name in ("log", "fsync") else "right")
    for row in report["outbox"]:
        figures = (row["accepted_per_s"], row["events_per_s"], row["cpu_us_per_event"], row["rss_mb"])
        table.add_row(row["log"], row["fsync"], *(f"{figure:.0f}" for figure in figures))
    return table


def _answer(report: dict[str, Any]) -> Table:
    table = Table(title=f"added to an answer's end, {report['plan']['rate']:g} answers/s")
    for name in ("log", "fsync", "answers", "p50 ms", "p99 ms", "max ms", "CPU us/event", "MiB"):
        table.add_column(name, justify="left" if name in ("log", "fsync") else "right")
    for row in report["answer"]:
        table.add_row(
            row["log"],
            row["fsync"],
            str(row["answers"]),
            f"{row['p50_ms']:.2f}",
            _judged(f"{row['p99_ms']:.2f}", row["p99_ms"] < LATENCY_TARGET_MS),
            f"{row['max_ms']:.2f}",
            f"{row['cpu_us_per_event']:.0f}",
            f"{row['rss_mb']:.0f}",
        )
    return table


def _judged(text: str, good: bool) -> str:
    return f"[green]{text}[/]" if good else f"[red]{text}[/]"
