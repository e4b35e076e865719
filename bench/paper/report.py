"""The page `results.md` out of `paper.json`. Pure but for the writing of the page and its plots."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anyloop.world import SUBTASKS
from bench.paper.markdown import between, gain, percent, table
from bench.paper.peers import ABLATION, PANELS
from bench.paper.plots import draw
from bench.paper.progress import duration
from bench.paper.verdicts import points, times
from trainer.config import TrainerSettings

Document = Mapping[str, Any]
_GROUPS = ("mean", "generation", "understanding")


def write(document: Document, page: Path, images: Path) -> None:
    """The page, and beside it or in a folder of its own the plots."""
    drawn = draw(document, images)
    page.parent.mkdir(parents=True, exist_ok=True)
    folder = os.path.relpath(images, page.parent)
    page.write_text(markdown(document, {name: f"{folder}/{file}" for name, file in drawn.items()}))


def markdown(document: Document, plots: Mapping[str, str]) -> str:
    shown = (_head, _verdicts, _main, _ratios, _ablation, _informative, _rounds, _costs)
    sections = (*shown, _peers, _how, _settings, _again)
    return "\n".join(line for section in sections for line in section(document, plots)).rstrip() + "\n"


def _head(document: Document, plots: Mapping[str, str]) -> Iterator[str]:
    plan = document["plan"]
    counts = sorted({len(row["seeds"]) for row in document["main"]}) or [0]
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    yield "# Results: language feedback beside binary feedback"
    yield ""
    yield (
        "The experiment of the Align Anything paper (arXiv 2412.15838) in the reference world: for every method the "
        f"same base, the same {plan['prompts']} prompts and {plan['annotations']} annotations by people; {seeds} "
        f"seeds, {plan['evaluate']} held-out prompts per subtask and seed. `python -m bench.paper report` writes this "
        "page; nobody edits it."
    )
    yield ""
    if plan["name"] != "full":
        yield (
            f"**This is a {plan['name']} run**: fewer seeds, methods, shares of the binary feedback and held-out "
            "prompts than the full one has; annotations, logged prompts and rounds are the same."
        )
        yield ""
    if document["missing"]:
        names = ", ".join(f"`{name}`" for name in document["missing"][:8])
        more = " and others" if len(document["missing"]) > 8 else ""
        absent = f"{len(document['missing'])} of {_cells(document)}"
        yield f"**Not complete**: {absent} cells have no result ({names}{more})."
        yield ""
    if len(document["commits"]) > 1:
        yield (
            f"**Cells of {len(document['commits'])} commits stand side by side here** "
            f"({', '.join(document['commits'])}): a difference between two methods may be one between two programs. "
            "`paper.json` has each cell's commit; delete the older cells and run again for figures of one program."
        )
        yield ""
    for name, why in document["failed"].items():
        yield f"- `{name}` failed: {why}"
    if document["failed"]:
        yield ""


def _verdicts(document: Document, plots: Mapping[str, str]) -> Iterator[str]:
    yield "## The targets"
    yield ""
    yield table(
        ["target", "measured", ""],
        ([row["target"], row["measured"], verdict(row)] for row in document["verdicts"]),
    ).replace("---:", "---")
    yield "Met or not goes by the means; *not sure*: a 95 % interval reaches across the target. Gains are in points."
    yield ""


def verdict(row: Mapping[str, Any]) -> str:
    if row["met"] is None:
        return "open"
    return ("met" if row["met"] else "**not met**") + ("" if row["sure"] else ", not sure")


def _main(document: Document, plots: Mapping[str, str]) -> Iterator[str]:
    if not document["main"]:
        return
    yield "## Every method on every subtask"
    yield ""
    yield from _plot(plots, "gains", "Gain over the base by method and subtask, with 95 % intervals")
    yield "Right answers, percent:"
    yield ""
    yield table(
        ["", *SUBTASKS, "mean", "seeds"],
        (
            [
                row["method"],
                *(percent(row["success"][name]) for name in SUBTASKS),
                between(row["success"]["mean"]),
                str(len(row["seeds"])),
            ]
            for row in document["main"]
        ),
    )
    yield "Gain over the base, points:"
    yield ""
    yield table(
        ["", *SUBTASKS, "mean"],
        (
            [row["method"], *_gains(row["gain"], SUBTASKS), f"**{points(row['gain']['mean'])}**"]
            for row in document["main"]
            if row["gain"]
        ),
    )


def _ratios(document: Document, plots: Mapping[str, str]) -> Iterator[str]:
    if not document["ratios"]:
        return
    yield "## How many times the binary gain"
    yield ""
    yield table(
        ["", "language gain", "binary gain", "ratio", "ratio of each seed", "language − 3 × max(binary, 0)"],
        (
            [
                f"{' and '.join(row['language'])} over {' and '.join(row['binary'])}",
                points(row["language_gain"]),
                points(row["binary_gain"]),
                times(row["ratio"]) if row["ratio"] else "none: the binary gain is not positive",
                ", ".join(f"{one:.2f}" for one in row["ratio"]["seeds"]) if row["ratio"] else "",
                points(row["beyond"]),
            ]
            for row in document["ratios"]
        ),
    )


def _ablation(document: Document, plots: Mapping[str, str]) -> Iterator[str]:
    if not document["ablation"]:
        return
    yield "## Fewer annotations"
    yield ""
    yield from _plot(plots, "annotations", "Gain over the base by number of annotations")
    columns = [*SUBTASKS, *_GROUPS]
    yield "Gain over the base, points:"
    yield ""
    yield table(
        ["method", "share", "annotations", "that tell", *columns],
        (
            [
                row["method"],
                f"{row['share']:.0%}",
                str(row["annotations"]),
                "" if row.get("tell") is None else f"{row['tell']:.0f}",
                *(gain(row["gain"][one]) for one in columns),
            ]
            for row in document["ablation"]
        ),
    )
    over = [row for row in document["ablation"] if row.get("over_all_binary")]
    if over:
        yield "Language feedback over 100 % of the binary feedback, points:"
        yield ""
        yield table(
            ["method", "share", *columns],
            ([row["method"], f"{row['share']:.0%}", *_gains(row["over_all_binary"], columns)] for row in over),
        )


def _informative(document: Document, plots: Mapping[str, str]) -> Iterator[str]:
    rows = document.get("informative", ())
    if not rows:
        return
    yield "### At as many annotations that tell something"
    yield ""
    yield (
        f"A preference between two answers with as many faults tells nothing: {rows[0]['tell']:.0%} of the preferences "
        "tell, every critique does. So the same number of annotations is not the same amount of information; here "
        "language feedback stands beside as many binary annotations as it takes for at least as many to tell."
    )
    yield ""
    yield table(
        ["", "annotations", "binary annotations", "of which tell", "language gain", "binary gain", "difference"],
        (
            [
                f"{row['language']} over {row['binary']}",
                str(row["annotations"]),
                str(row["binary_annotations"]) + ("" if row["enough"] else " (too few, and the most there are)"),
                f"{row['binary_informative']:.0f}",
                points(row["language_gain"]),
                points(row["binary_gain"]),
                points(row["over"]),
            ]
            for row in rows
        ),
    )


def _rounds(document: Document, plots: Mapping[str, str]) -> Iterator[str]:
    if not document["rounds"]:
        return
    yield "## Round after round"
    yield ""
    yield from _plot(plots, "rounds", "Gain over the base after each round")
    yield table(
        ["round", "annotations so far", *SUBTASKS, "mean", "over the round before"],
        (
            [
                str(row["round"]),
                str(row["annotations"]),
                *(percent(row["success"][name]) for name in SUBTASKS),
                between(row["success"]["mean"]),
                points(row["step"]["mean"]) if row["step"] else "",
            ]
            for row in document["rounds"]
        ),
    )


def _costs(document: Document, plots: Mapping[str, str]) -> Iterator[str]:
    if not document["costs"]:
        return
    yield "## What it costs"
    yield ""
    yield table(
        ["", "time", "with what it shares with others", "peak memory"],
        (
            [
                row["method"],
                duration(row["seconds"]),
                duration(row["seconds_with_shared"]),
                f"{row['peak_rss_bytes'] / 2**20:.0f} MiB",
            ]
            for row in document["costs"]
        ),
    )
    yield "One thread, evaluation included; means over seeds, memory the largest of all cells that the method needs."
    yield ""


def _peers(document: Document, plots: Mapping[str, str]) -> Iterator[str]:
    ours = {row["method"]: row for row in document["main"] if row["gain"]}
    methods = ("dpo", "ppo", "llf-dpo", "llf-ppo")
    yield "## Beside the paper"
    yield ""
    yield document["caution"]
    yield ""
    rows = [
        [f"{one.subtask}, {one.model}, {one.benchmark}", *(f"{one.gain(method):+.2f}" for method in methods)]
        for one in PANELS
    ]
    for subtask in dict.fromkeys(("TI2T", "TI2TI", "T2I", "TV2T", "TA2T", "T2T", "T2A", "T2V")):
        found = [points(ours[method]["gain"][subtask]) if method in ours else "" for method in methods]
        note = "" if subtask in {one.subtask for one in PANELS} else " (the paper has none)"
        rows.append([f"{subtask}, here, points{note}", *found])
    yield "Gain over the base; the paper's are differences of values read off its charts."
    yield ""
    yield table(["", *methods], rows)
    yield "Its ablation, gain over the base with a share of the language feedback, and with all of the binary:"
    yield ""
    yield table(
        ["", "25 %", "50 %", "75 %", "100 % binary"],
        ([subtask, *(f"{one:+g}" for one in gains)] for subtask, gains in ABLATION.items()),
    )


def _how(document: Document, plots: Mapping[str, str]) -> Iterator[str]:
    yield "## How it was measured"
    yield ""
    for line in document["how"]:
        yield f"- {line}"
    overs = {row["success"]["mean"]["over"] for row in document["main"]}
    if "seeds" in overs:
        yield (
            "- Intervals are 95 %: Student's t over the seeds, each a replication with prompts, annotations and "
            "training of its own, and never narrower than the held-out prompts alone make it. For one subtask, what "
            "training adds to the spread of the prompts is pooled over the subtasks. For ratios: Fieller's interval."
        )
    if "seeds and prompts" in overs:
        yield "- Intervals are 95 %: a bootstrap of the seeds, and in each of the held-out prompts."
    if "prompts" in overs:
        yield "- With one seed, intervals are a bootstrap of the held-out prompts: other trainings may differ by more."
    for line in document["tuned"]:
        yield f"- {line}"
    yield ""


def _settings(document: Document, plots: Mapping[str, str]) -> Iterator[str]:
    settings = {method: found for method, found in document["settings"].items() if found}
    if not settings:
        return
    yield "Settings of each method that are not the trainer's defaults:"
    yield ""
    usual = TrainerSettings().model_dump(mode="json")
    rows = (
        [method, ", ".join(f"`{name}={one}`" for name, one in found.items() if usual.get(name) != one) or "-"]
        for method, found in settings.items()
    )
    yield table(["", "settings"], rows).replace("---:", "---")


def _again(document: Document, plots: Mapping[str, str]) -> Iterator[str]:
    where = document["environment"]
    yield "## Again"
    yield ""
    yield "```"
    yield from document["commands"]
    yield "```"
    yield ""
    yield (
        f"{document['date']}, commit {', '.join(document['commits']) or 'unknown'}; {where['cpu']}, "
        f"{where['cores']} cores, {where['memory_bytes'] / 2**30:.0f} GiB; Python {where['python']}, torch "
        f"{where['torch']}, transformers {where['transformers']}; {where['threads_per_cell']} thread per cell."
    )
    yield ""
    cells = f"bench-out/paper/{document['plan']['name']}/cells"
    yield f"`bench-out/paper.json` has the figures of every cell, `{cells}` each prompt's outcome."


def _cells(document: Document) -> int:
    return len(document["missing"]) + len(document["cells"])


def _gains(found: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    return [gain(found[name]) for name in columns]


def _plot(plots: Mapping[str, str], name: str, words: str) -> Iterator[str]:
    if name in plots:
        yield f"![{words}]({plots[name]})"
        yield ""
