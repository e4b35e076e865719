"""The report as tables for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table

_MIB = 2**20


def show(report: dict[str, Any], console: Console) -> None:
    for name, model in report["models"].items():
        console.print(_points(name, model, report))
        console.print(_floors(name, model))
        console.print(_phases(name, model))
        console.print(_processors(name, model, str(max(report["plan"]["streams"]))))
    console.print(_targets(report["targets"]))
    console.print(_checks(report))
    console.print(f"[dim]{report['note']}[/]")
    for error in report["errors"]:
        console.print(f"[bold red]{error['model']}: {error['contender']} failed:[/] {error['error']}", markup=True)


def _points(name: str, model: dict[str, Any], report: dict[str, Any]) -> Table:
    table = Table(title=f"{name}: streamed answers of {report['plan']['max_tokens']} tokens", title_justify="left")
    table.add_column("contender", no_wrap=True)
    for column in ("mode", "streams", "tokens/s", "first token p50", "p99 ms", "between tokens p50", "p99 ms"):
        table.add_column(column, justify="right")
    for column in ("between messages p50", "p99 ms", "tokens/ message", "memory MiB", "shortest"):
        table.add_column(column, justify="right")
    for contender, modes in model["contenders"].items():
        for mode, points in modes.items():
            for streams, point in points.items():
                table.add_row(contender, mode, streams, *_row(point))
        failed = [
            error for error in report["errors"] if error["model"] == name and error["contender"].startswith(contender)
        ]
        for error in failed:
            table.add_row(f"[red]{error['contender']}", "[red]failed", *[""] * 10, error["error"].splitlines()[0][:60])
        table.add_section()
    return table


def _row(point: dict[str, Any]) -> list[str]:
    latencies = ("ttft_p50", "ttft_p99", "itl_p50", "itl_p99", "message_gap_p50", "message_gap_p99")
    return [
        f"{point['tokens_per_second'] or 0:.0f}",
        *("" if point[key] is None else f"{point[key] * 1e3:.1f}" for key in latencies),
        f"{point['tokens_per_message']:.1f}",
        f"{point['peak_memory_bytes'] / _MIB:.0f}",
        str(point["shortest_answer"]),
    ]


def _floors(name: str, model: dict[str, Any]) -> RenderableType:
    if "floors" not in model:
        return ""
    table = Table(title=f"{name}: decode steps beside the floors, taken in turn, tokens/s", title_justify="left")
    columns = (
        "batch",
        "engine, greedy",
        "engine, sampled",
        "Hugging Face forward, decode",
        "with prompts",
        "matmuls (torch)",
        "matmuls (oneDNN, packed)",
    )
    for column in (*columns, "matmuls with prompts (faster)"):
        table.add_column(column, justify="right")
    for batch, floor in model["floors"].items():
        engine, forward, matmuls = floor["engine"], floor["hugging_face_forward"], floor["matmuls"]
        figures = (
            forward["decode"],
            forward["with_prompts"],
            matmuls["mkl"],
            matmuls["onednn"],
            matmuls["with_prompts"],
        )
        table.add_row(batch, *(f"{figure:.0f}" for figure in (engine["greedy"], engine["sampled"], *figures)))
    return table


def _phases(name: str, model: dict[str, Any]) -> RenderableType:
    profiles = model.get("engine", {}).get("profile", {})
    tables: list[RenderableType] = []
    for mode, profile in profiles.items():
        title = f"{name}: one decode step in process, batch {profile['streams']}, {mode}: {profile['step_ms']:.2f} ms"
        table = Table(title=title, title_justify="left")
        for phase in profile["phases_ms"]:
            table.add_column(phase, justify="right")
        table.add_row(*(f"{ms:.2f} ms {ms / profile['step_ms']:.0%}" for ms in profile["phases_ms"].values()))
        tables.append(table)
    return Group(*tables)


def _processors(name: str, model: dict[str, Any], streams: str) -> RenderableType:
    title = f"{name}: processor seconds per 1,000 tokens, {streams} streams, greedy (the client's not counted)"
    table = Table(title=title, title_justify="left", show_header=False)
    for contender, modes in model["contenders"].items():
        spent = modes.get("greedy", {}).get(streams, {}).get("cpu_seconds_per_1000_tokens", {})
        if spent:
            table.add_row(contender, ", ".join(f"{process} {seconds:.2f}" for process, seconds in spent.items()))
    return table


def _targets(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Targets", title_justify="left")
    table.add_column("model", no_wrap=True)
    table.add_column("what")
    for column in ("measured", "aim", ""):
        table.add_column(column, justify="right")
    words = {True: "[green]met", False: "[red]missed", None: ""}
    for row in rows:
        aim = "" if row["aim"] is None else f"{'≥' if row['at_least'] else '≤'} {row['aim']:g} {row['unit']}"
        table.add_row(row["model"], row["name"], f"{row['value']:.2f} {row['unit']}", aim, words[row["met"]])
    return table


def _checks(report: dict[str, Any]) -> Table:
    table = Table(title="Checks", title_justify="left")
    for column in ("model", "what", "found"):
        table.add_column(column)
    for name, model in report["models"].items():
        for what, found in model["checks"].items():
            for key, value in (found or {}).items():
                said = f"{value:.0%}" if isinstance(value, float) else str(value)
                table.add_row(name, f"{what}: {key.replace('_', ' ')}", said)
        if "engine" in model:
            settings = ", ".join(
                f"{key.removeprefix('engine_')} {value}" for key, value in model["engine"]["settings"].items()
            )
            size = f"{model['engine']['kv_cache_bytes'] / _MIB:.1f} MiB"
            rows = model["engine"]["kv_cache_rows"]
            table.add_row(name, f"KV cache, {rows} rows, allocated once ({settings})", size)
            table.add_row(name, "forward that the engine chose", model["engine"]["forward"])
    return table
