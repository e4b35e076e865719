"""`anyloop import` as a user runs it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anyloop.cli.app import app
from anyloop.cli.exits import ExitCode
from anyloop.cli.output import console
from anyloop.config import Settings
from anyloop.datasets.progress import only_one
from anyloop.log import FEEDBACK, RESPONSES, open_log
from tests.datasets.samples import records, said, write_all, write_jsonl


def run(runner: CliRunner, folder: Path, *options: str) -> Any:
    return runner.invoke(app, ["import", "align-anything", str(folder), *options])


def logged(topic: str) -> int:
    with open_log(Settings().effective_log_url) as log:
        return sum(log.end_offsets(topic).values())


def test_a_first_import_makes_the_log_and_says_what_it_did(tmp_path: Path, home: Path, runner: CliRunner) -> None:
    result = run(runner, write_all(tmp_path / "data"))
    assert result.exit_code == ExitCode.OK, result.output
    assert "TI2TI" in result.stdout
    assert "16 response" in result.stdout
    assert (logged(RESPONSES), logged(FEEDBACK)) == (16, 16)
    assert run(runner, tmp_path / "data").exit_code == ExitCode.OK
    assert (logged(RESPONSES), logged(FEEDBACK)) == (16, 16)


def test_a_dry_run_writes_nothing_at_all(tmp_path: Path, home: Path, runner: CliRunner) -> None:
    result = run(runner, write_all(tmp_path / "data"), "--dry-run")
    assert result.exit_code == ExitCode.OK
    assert result.stdout.startswith("Nothing was written.")
    assert not home.exists()


def test_the_report_as_one_json_document_and_as_a_file(tmp_path: Path, home: Path, runner: CliRunner) -> None:
    result = run(runner, write_all(tmp_path / "data"), "--json", "--report", str(tmp_path / "report.json"))
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["subtasks"]["T2I"]["imported"] == 1
    assert report["events"]["preference"] == 8


@pytest.mark.parametrize("subtask", ["T2I", "text-to-image", "t2i"])
def test_only_one_subtask(tmp_path: Path, home: Path, runner: CliRunner, subtask: str) -> None:
    result = run(runner, write_all(tmp_path / "data"), "--subtask", subtask, "--json")
    assert list(json.loads(result.stdout)["subtasks"]) == ["T2I"]


def test_what_was_not_understood_stands_on_the_screen_and_record_by_record(
    tmp_path: Path, home: Path, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_width", 200)  # a dumb terminal has 80, whatever COLUMNS says
    good = {"question": "q", "response_1": "a", "response_2": "b", **said(), "mood": "merry"}
    write_jsonl(tmp_path / "data" / "t2t.jsonl", [good, {"question": "q"}])
    (tmp_path / "data" / "videos.zip").write_bytes(b"")
    result = run(runner, tmp_path / "data")
    assert result.exit_code == ExitCode.OK
    for sentence in ("no text of the answer under response_1", "mood", '"merry"', "Files that were not read: 1 .zip"):
        assert sentence in result.stdout
    (line,) = (home / "imports" / "align-anything" / "records.jsonl").read_text().splitlines()
    assert json.loads(line)["record"] == "t2t.jsonl#1"


def test_an_own_key_table_and_an_own_folder_of_media(tmp_path: Path, home: Path, runner: CliRunner) -> None:
    row = records()["text-video-to-text"]
    row["clip"] = row.pop("video_path").removeprefix("./videos/")
    write_jsonl(tmp_path / "data" / "tv2t.jsonl", [row])
    write_all(tmp_path / "other")
    (tmp_path / "keys.toml").write_text('[TV2T]\nprompt = [{ video = ["clip"] }, { text = ["prompt"] }]\n')
    media = tmp_path / "other" / "text-video-to-text" / "videos"
    assert run(runner, tmp_path / "data").exit_code == ExitCode.FAILED
    result = run(runner, tmp_path / "data", "--keys", str(tmp_path / "keys.toml"), "--media-root", str(media), "--json")
    assert json.loads(result.stdout)["subtasks"]["TV2T"]["imported"] == 1


def test_nothing_understood_is_a_failure(tmp_path: Path, home: Path, runner: CliRunner) -> None:
    write_jsonl(tmp_path / "data" / "x.jsonl", [{"url": "x"}])
    assert run(runner, tmp_path / "data").exit_code == ExitCode.FAILED


def test_a_broken_file_is_a_failure_and_the_others_are_in(tmp_path: Path, home: Path, runner: CliRunner) -> None:
    write_all(tmp_path / "data")
    (tmp_path / "data" / "t2t.parquet").write_bytes(b"PAR1")
    result = run(runner, tmp_path / "data")
    assert result.exit_code == ExitCode.FAILED
    assert "broken: t2t.parquet" in result.stdout
    assert logged(RESPONSES) == 16


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--subtask", "T2X"], ExitCode.USAGE, "no subtask 'T2X'"),
        (["--name", "a/b"], ExitCode.USAGE, "--name a/b: use up to 64 letters"),
        (["--keys", "none.toml"], ExitCode.USAGE, "cannot be read"),
        (["--report", "nowhere/report.json"], ExitCode.USAGE, "name a file in a folder of yours"),
        (["--subtask", "T2V"], ExitCode.NOT_FOUND, "none of the 1 files is of T2V"),
    ],
)
def test_wrong_options_say_what_to_do(
    tmp_path: Path, home: Path, runner: CliRunner, options: list[str], code: ExitCode, sentence: str
) -> None:
    write_jsonl(tmp_path / "data" / "t2t.jsonl", [{}])
    result = run(runner, tmp_path / "data", *options)
    assert (result.exit_code, sentence in result.stderr) == (code, True), result.stderr


def test_a_folder_without_data_is_not_found(tmp_path: Path, home: Path, runner: CliRunner) -> None:
    result = run(runner, tmp_path)
    assert result.exit_code == ExitCode.NOT_FOUND
    assert "holds no .jsonl" in result.stderr


def test_two_imports_of_one_name_do_not_run_at_once(tmp_path: Path, home: Path, runner: CliRunner) -> None:
    write_all(tmp_path / "data")
    with only_one(home / "imports" / "align-anything"):
        result = run(runner, tmp_path / "data")
        assert result.exit_code == ExitCode.REFUSED
        assert run(runner, tmp_path / "data", "--name", "other").exit_code == ExitCode.OK
