"""The rows as a table for people and as JSON for machines."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from tests.faults.audit import OK, Attempt, Window
from tests.faults.run import Row


def table(rows: Sequence[Row]) -> Table:
    shown = Table(title="Faults under load: accepted, in the log, learned from", title_justify="left")
    for name in ("fault", "s"):
        shown.add_column(name, justify="right" if name == "s" else "left")
    for name in ("responses\naccepted", "\nin log", "\nunlogged", "feedback\naccepted", "\nin log", "\nlearned"):
        shown.add_column(name, justify="right")
    for name in ("dup.\nin log", "not\nheard"):
        shown.add_column(name, justify="right")
    shown.add_column("outbox\nKiB", justify="right")
    shown.add_column("chat p99, s\ncalm / fault", justify="right")
    shown.add_column("requests failed, and why")
    shown.add_column("verdict")
    for row in rows:
        responses, feedback = row.findings.responses, row.findings.feedback
        failed = [f"{count} x {what}" for what, count in row.findings.failed.items()] or ["none"]
        learned = f"{feedback['learned']}"
        if feedback["about_unlogged_responses"]:
            learned += f" (+{feedback['about_unlogged_responses']} on unlogged)"
        calm, during = latency(row.attempts, row.windows)
        shown.add_row(
            row.scenario.title,
            f"{row.seconds:.0f}",
            str(responses["accepted"]),
            str(responses["logged"]),
            str(responses["unlogged"]),
            str(feedback["accepted"]),
            str(feedback["logged"]),
            learned,
            str(responses["duplicates"] + feedback["duplicates"]),
            str(responses["unheard"] + feedback["unheard"]),
            f"{row.notes['peak_outbox_bytes'] / 1024:.0f}",
            f"{calm:.2f} / {during:.2f}",
            "\n".join(failed),
            "[green]holds[/]" if row.clean else f"[red]{len(row.findings.violations)} violations[/]",
        )
    return shown


def document(rows: Sequence[Row], environment: dict[str, Any]) -> dict[str, Any]:
    return {
        "environment": environment,
        "holds": all(row.clean for row in rows),
        "scenarios": [
            {
                "name": row.scenario.name,
                "title": row.scenario.title,
                "seconds": round(row.seconds, 1),
                "requests": len(row.attempts),
                "responses": row.findings.responses,
                "feedback": row.findings.feedback,
                "failed": row.findings.failed,
                "faults": [
                    {"name": window.name, "seconds": round(window.ended - window.begun, 1)} for window in row.windows
                ],
                "chat_p99_s": dict(
                    zip(("calm", "fault"), (round(s, 3) for s in latency(row.attempts, row.windows)), strict=True)
                ),
                "violations": row.findings.violations,
                **row.notes,
            }
            for row in rows
        ],
    }


def latency(attempts: Sequence[Attempt], windows: Sequence[Window]) -> tuple[float, float]:
    """Of answered chats, the 99th percentile in seconds outside and inside the faults."""
    calm, during = [], []
    for one in attempts:
        if one.kind == "chat" and one.status == OK:
            touched = any(one.begun <= window.ended and one.ended >= window.begun for window in windows)
            (during if touched else calm).append(one.ended - one.begun)
    return _p99(calm), _p99(during)


def _p99(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] if ordered else 0.0
