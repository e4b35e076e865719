"""The report as tables for people, and whether it is a failure."""

from typing import Any

from rich.console import Console
from rich.table import Table


def failed(report: dict[str, Any]) -> bool:
    """A request failed that met no bad version, or a bad version left its canary."""
    sound = [row for row in report["real"] if not row["what"].startswith("bad")]
    bad = [row for row in report["real"] if row["what"].startswith("bad")]
    return any(row["failed"] for row in sound) or any(
        sum(replica["swaps"] > 0 for replica in row["replicas"]) != 1 for row in bad
    )


def show(report: dict[str, Any], console: Console) -> None:
    if report["real"]:
        console.print(_real(report))
    if report["simulated"]:
        console.print(_simulated(report))


def _real(report: dict[str, Any]) -> Table:
    table = Table(title=f"Three real replicas of tiny-omni, {report['plan']['clients']} clients without a pause")
    for name in ("", "seconds", "requests", "failed", "p50 ms", "p99 ms", "longest gap ms", "swaps", "stall µs"):
        table.add_column(name, justify="left" if not name else "right")
    for row in report["real"]:
        seconds = "-".join(f"{one:.1f}" for one in sorted({min(row["seconds"]), max(row["seconds"])}))
        swaps = "/".join(f"{replica['swaps']:.0f}" for replica in row["replicas"])
        stall = max(replica["stall_us"] for replica in row["replicas"])
        table.add_row(
            row["what"],
            seconds,
            str(row["requests"]),
            str(row["failed"]),
            f"{row['p50_ms']:.0f}",
            f"{row['p99_ms']:.0f}",
            f"{row['longest_gap_ms']:.0f}",
            swaps,
            f"{stall:.0f}" if stall else "",
        )
    return table


def _simulated(report: dict[str, Any]) -> Table:
    plan = report["plan"]
    table = Table(
        title=f"Simulated replicas, {plan['max_swapping']} change at a time for {plan['swap_seconds']:g} s each, "
        "10 %, 50 %, all; real API server"
    )
    columns = ("replicas", "seconds", "of swaps", "status writes", "API calls", "CPU s", "RSS MB", "idle calls/min")
    for name in columns:
        table.add_column(name, justify="right")
    for row in report["simulated"]:
        calls, idle = row["api_calls"], row["idle"]
        table.add_row(
            str(row["replicas"]),
            f"{row['seconds']:.1f}",
            f"{row['ideal_seconds']:.1f}",
            str(calls.get("update_status policyrollouts", 0)),
            str(row["api_calls_total"]),
            f"{row['cpu_seconds']:.2f}",
            f"{row['rss_mb']:.0f}",
            f"{60 * sum(idle['api_calls'].values()) / idle['seconds']:.0f}",
        )
    return table
