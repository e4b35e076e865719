import json
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from anyloop.world import SUBTASKS
from bench.paper.__main__ import _parser
from bench.paper.document import document
from bench.paper.peers import PANELS
from bench.paper.plan import QUICK, Cell, Plan
from bench.paper.plots import draw
from bench.paper.report import markdown, verdict, write
from bench.paper.show import show
from tests.bench.paper.experiment import experiment, rates

PLAN = Plan(
    seeds=(0, 1, 2),
    annotations=400,
    language_shares=(0.25, 0.5, 0.75, 1.0),
    binary_shares=(0.25, 0.5, 0.75, 1.0),
    methods=("dpo", "ppo", "llf-dpo", "llf-ppo"),
)


def made(plan: Plan = PLAN, without: str = "", failed: str = "") -> dict[str, object]:
    cells, records = experiment(plan, rates)
    left = {cell: record for cell, record in records.items() if cell.id != without}
    return document(plan, cells, left, {cell: "out of memory" for cell in cells if cell.id == failed})


def test_the_page_is_a_function_of_the_document_as_json_has_it(tmp_path: Path) -> None:
    found = made()
    stored = json.loads(json.dumps(found, allow_nan=False))
    assert markdown(stored, {}) == markdown(found, {})
    cells = stored["cells"]
    assert "outcomes" not in cells["llf-dpo.n400.s0"]  # they stand in the cells' own files
    assert cells["llf-dpo.n400.s0"]["subtasks"]["T2I"] == {"right": 14.0, "asked": 20}


def test_every_method_and_subtask_stands_on_the_page_with_its_interval() -> None:
    page = markdown(made(), {})
    header = "| " + " | ".join(["", *SUBTASKS, "mean"]) + " |"
    (_, gains) = page.split("Gain over the base, points:\n\n" + header)[:2]
    row = next(line for line in gains.splitlines() if line.startswith("| llf-dpo"))
    assert row.count("+20.0 ±") == 8
    assert "**+20.0 [" in row
    assert "| base | 50.0 |" in page
    assert "4.00 x [" in page
    assert "## Round after round" in page
    assert "| dpo | `dpo_lr=0.0005` |" in page  # what is not the trainer's default
    assert "make experiment-paper" in page
    assert "commit c0ffee" in page
    assert "Student's t over the seeds" in page
    assert "Not complete" not in page


def test_what_a_quick_run_is_short_of_is_what_the_page_says() -> None:
    full, quick = asdict(Plan()), asdict(QUICK)
    short = {name for name in full if full[name] != quick[name]} - {"name"}
    assert short == {"seeds", "methods", "binary_shares", "evaluate"}
    words = "fewer seeds, methods, shares of the binary feedback and held-out prompts"
    assert f"**This is a quick run**: {words} than" in markdown(made(replace(PLAN, name="quick")), {})
    assert words in _parser().format_help().replace("\n" + " " * 24, " ")


def test_cells_of_several_commits_are_warned_of() -> None:
    cells, records = experiment(PLAN, rates)
    (one,) = (cell for cell in cells if cell.id == "dpo.n400.s1")
    records[one] = {**records[one], "commit": "0ff1ce"}
    page = markdown(document(PLAN, cells, records, {}), {})
    assert "**Cells of 2 commits stand side by side here** (0ff1ce, c0ffee)" in page
    assert page.index("Cells of 2 commits") < page.index("## The targets")
    assert "stand side by side" not in markdown(made(), {})


def test_annotations_that_tell_stand_beside_their_number() -> None:
    cells, records = experiment(PLAN, rates)
    for cell in cells:
        if cell.kind == "answers":
            records[cell] = {**records[cell], "metrics": {"preferences_that_tell": 0.5}}
    page = markdown(document(PLAN, cells, records, {}), {})
    assert "| dpo | 25% | 100 | 50 |" in page
    assert "| llf-dpo | 25% | 100 | 100 |" in page
    assert "50% of the preferences tell" in page
    assert "| llf-dpo over dpo | 400 | 400 (too few, and the most there are) | 200 | +20.0 [" in page
    assert "At as many annotations" not in markdown(made(), {})


def test_every_row_of_a_table_has_as_many_cells_as_its_header() -> None:
    tables: list[list[str]] = [[]]
    for line in markdown(made(), {}).splitlines():
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    assert len(tables) > 8
    for table in filter(None, tables):
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_the_papers_figures_stand_beside_ours_with_the_caution() -> None:
    page = markdown(made(), {})
    assert "The worlds differ" in page
    assert "| TI2T, LLaVA-7B, MIA-Bench | +3.10 | +9.70 | +4.10 | +11.40 |" in page
    assert "T2V, here, points (the paper has none) | +5.0 [" in page
    assert len(PANELS) == 6


def test_what_is_missing_failed_or_small_is_said_first() -> None:
    page = markdown(made(without="ppo.n400.s1", failed="ppo.n400.s1"), {})
    assert "**Not complete**: 1 of 103 cells have no result (`ppo.n400.s1`)" in page
    assert "- `ppo.n400.s1` failed: out of memory" in page
    assert page.index("Not complete") < page.index("## The targets")
    assert "**This is a quick run**" in markdown(made(replace(PLAN, name="quick")), {})
    empty = markdown(document(PLAN, {Cell("base", 0): {}}, {}, {}), {})
    assert "not measured" in empty
    assert "## Every method" not in empty


def test_a_missed_target_is_as_plain_as_one_that_is_met() -> None:
    words = [verdict({"met": met, "sure": sure}) for met, sure in ((True, True), (True, False), (False, True))]
    assert words == ["met", "met, not sure", "**not met**"]
    assert verdict({"met": None, "sure": None}) == "open"


def test_the_plots_are_small_the_same_each_time_and_linked_from_the_page(tmp_path: Path) -> None:
    found = made()
    write(found, tmp_path / "docs" / "results.md", tmp_path / "docs" / "images")
    page = (tmp_path / "docs" / "results.md").read_text()
    for name in ("gains", "annotations", "rounds"):
        image = tmp_path / "docs" / "images" / f"paper-{name}.svg"
        assert f"](images/{image.name})" in page
        ElementTree.parse(image)
        assert image.stat().st_size < 150_000
        again = draw(found, tmp_path / "again")[name]
        assert (tmp_path / "again" / again).read_bytes() == image.read_bytes()


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    assert draw(document(PLAN, {}, {}, {}), tmp_path) == {}


def test_the_terminal_shows_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    show(made(without="dpo.n400.s1"), Console(width=200))
    shown = capsys.readouterr().out
    assert "+20.0 ±" in shown
    assert "4.00 x [" in shown
    assert "1 of 103 cells have no result yet" in shown
