"""The runner with cells that take no time: `fake_cells.run_cell`, in real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench.paper.jobs import Run, Runner
from bench.paper.plan import Cell, Graph, Plan, fingerprints, graph, wanted
from bench.paper.store import InUse, Record, Store, records

FAKE = "tests.bench.paper.fake_cells:run_cell"
PLAN = Plan(
    seeds=(0,),
    annotations=400,
    methods=("dpo", "llf-dpo"),
    language_shares=(1.0,),
    binary_shares=(1.0,),
    rounds=1,
    evaluate=3,
)
IDS = [
    "model.n0.s0",
    "base.n0.s0",
    "answers.n400.s0",
    "dpo.n400.s0",
    "critic.n400.s0",
    "pairs.n400.s0",
    "llf-dpo.n400.s0",
]


@dataclass
class Notes:
    """A watcher that remembers."""

    ends: dict[str, str] = field(default_factory=dict)
    running: int = 0
    most: int = 0

    def begun(self, cell: Cell) -> None:
        self.running += 1
        self.most = max(self.most, self.running)

    def ended(self, cell: Cell, record: Record | None, complaint: str) -> None:
        self.running -= 1
        self.ends[cell.id] = complaint

    def passed(self, running: Mapping[Cell, float], left_s: float | None) -> None:
        assert len(running) == self.running


@dataclass
class Bench:
    store: Store
    cells: Graph
    notes: Notes
    trace: Path

    def run(self, base: str = "weights") -> Run:
        self.trace.unlink(missing_ok=True)
        prints = fingerprints(self.cells, base)
        runner = Runner(self.store, self.cells, prints, commit="c0ffee", watcher=self.notes, function=FAKE)
        return runner.run(wanted(PLAN))

    @property
    def done(self) -> list[str]:
        """Cells that the last run began, sorted: two at a time have no order."""
        return sorted(self.trace.read_text().split()) if self.trace.exists() else []

    def cell(self, name: str) -> Cell:
        return next(cell for cell in self.cells if cell.id == name)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    return Bench(Store(tmp_path / "out"), graph(PLAN, wanted(PLAN)), Notes(), tmp_path / "trace")


def test_every_cell_is_done_once_after_what_it_needs_and_a_second_run_finds_all_of_them(bench: Bench) -> None:
    run = bench.run()
    assert (run.failed, run.blocked) == ({}, [])
    assert bench.done == sorted(IDS)
    assert bench.notes.most == 2
    read = (bench.store.work(bench.cell("llf-dpo.n400.s0")) / "read").read_text()
    assert read == "answers=answers.n400.s0 critic=critic.n400.s0 pairs=pairs.n400.s0 model=model.n0.s0"
    found = records(bench.store, fingerprints(bench.cells, "weights"))
    record = found[bench.cell("llf-dpo.n400.s0")]
    assert record["commit"] == "c0ffee"
    assert record["needs"]["pairs"] == "pairs.n400.s0"
    assert list(record["needs"]) == ["answers", "critic", "pairs", "model"]
    assert record["settings"] == {"lr": 2e-4, "epochs": 2}
    assert record["metrics"] == {"loss": 0.5, "worst": None}  # numpy's number, and what JSON has no word for
    assert record["peak_rss_bytes"] > 2**20
    assert set(record["subtasks"]) == set(record["outcomes"])
    assert record["subtasks"]["T2T"] == {"right": sum(record["outcomes"]["T2T"]), "asked": 3}
    assert bench.run() == Run()
    assert bench.done == []


def test_a_failed_cell_is_reported_the_others_go_on_and_the_next_run_tries_it_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "critic.n400.s0")
    run = bench.run()
    assert [cell.id for cell in run.failed] == ["critic.n400.s0"]
    (why,) = run.failed.values()
    assert "exited with status 1: RuntimeError: the loss is not a number" in why
    assert str(bench.store.log(bench.cell("critic.n400.s0"))) in why
    assert [cell.id for cell in run.blocked] == ["pairs.n400.s0", "llf-dpo.n400.s0"]
    assert bench.done == ["answers.n400.s0", "base.n0.s0", "critic.n400.s0", "dpo.n400.s0", "model.n0.s0"]
    assert bench.notes.ends["dpo.n400.s0"] == ""
    monkeypatch.delenv("FAILS")
    assert bench.run() == Run()
    assert bench.done == ["critic.n400.s0", "llf-dpo.n400.s0", "pairs.n400.s0"]


def test_results_on_another_base_are_not_taken_for_these(bench: Bench) -> None:
    bench.run()
    bench.run(base="other weights")
    assert bench.done == sorted(IDS)


def test_the_disk_of_finished_work_may_be_freed_and_only_what_is_read_again_is_made_again(bench: Bench) -> None:
    bench.run()
    for name in IDS:
        for file in bench.store.work(bench.cell(name)).iterdir():
            file.unlink()
        bench.store.work(bench.cell(name)).rmdir()
    assert bench.run() == Run()
    assert bench.done == []
    bench.store.result(bench.cell("dpo.n400.s0")).unlink()
    bench.run()
    assert bench.done == ["answers.n400.s0", "dpo.n400.s0", "model.n0.s0"]


def test_a_result_that_was_cut_off_is_no_result(bench: Bench) -> None:
    bench.run()
    path = bench.store.result(bench.cell("dpo.n400.s0"))
    path.write_text(path.read_text()[:100])
    bench.run()
    assert bench.done == ["dpo.n400.s0"]


def test_two_runs_do_not_work_in_one_folder(bench: Bench) -> None:
    with bench.store.locked(), pytest.raises(InUse, match="another run works in"), Store(bench.store.root).locked():
        pass
    with bench.store.locked():
        pass


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_a_run_that_is_ended_leaves_no_process_and_the_next_goes_on(tmp_path: Path, end: signal.Signals) -> None:
    trace = tmp_path / "trace"
    argv = [sys.executable, "-m", "bench.paper", "--seeds=0", "--only=llf-dpo.n80.s0", "--only=base.n0.s0"]
    argv += [f"--out={tmp_path / 'paper'}", f"--function={FAKE}"]
    env = {**os.environ, "TRACE": str(trace), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(argv, env={**env, "HANGS": "pairs.n80.s0"}, stderr=subprocess.PIPE, text=True) as first:
        _until(lambda: trace.exists() and "pairs.n80.s0" in trace.read_text())
        _until(lambda: (tmp_path / "paper/full/cells/base.n0.s0.json").exists())
        first.send_signal(end)
        _, said = first.communicate(timeout=20)
    if end == signal.SIGINT:
        assert first.returncode == 130
        assert "the same command goes on from here" in said
    _until(lambda: not _workers(tmp_path))
    before = trace.read_text().split()
    again = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0, again.stderr
    assert sorted(trace.read_text().split()[len(before) :]) == ["llf-dpo.n80.s0", "pairs.n80.s0"]
    document = json.loads((tmp_path / "paper.json").read_text())
    assert [row["method"] for row in document["main"]] == ["base", "llf-dpo"]
    assert "dpo.n80.s0" in document["missing"]
    assert "Not complete" in (tmp_path / "paper/full/results.md").read_text()


def _until(true: object, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _workers(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if "bench.paper.worker" in line and str(folder) in line:
                found.append(int(entry.name))
    return found
