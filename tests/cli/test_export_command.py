"""`anyloop export` as a user runs it, and as `datasets` reads what it wrote."""

import dataclasses
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anyloop.cli.app import app
from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.export_place import replacing
from anyloop.config import Settings
from anyloop.datasets.export import writer
from anyloop.log import FEEDBACK, RESPONSES, Event, open_log
from anyloop.media.store import MediaStore, to_proto
from protos.anyloop.v1 import types_pb2
from tests.datasets.samples import png, wav
from tests.trainer.events import feedback, response

ROWS = {"preference": 3, "preference_images": 1, "preference_media": 1, "critique": 1, "critique_media": 1, "label": 1}


@pytest.fixture
def logged(home: Path) -> Path:
    """Pairs of text, one about an image, one with a sound in an answer; a critique of each kind; a label."""
    store = MediaStore(Settings().effective_media_url)
    image, sound = store.put(png(), "image/png"), store.put(wav(), "audio/wav")
    part = types_pb2.ContentPart
    asks = {f"t{n}": [part(text=f"Say {n}.")] for n in range(3)}
    asks |= {"i": [part(media=to_proto(image)), part(text="What is it?")], "s": [part(text="Play.")]}
    with open_log(Settings().effective_log_url) as log:
        log.ensure_topics()
        for name, ask in asks.items():
            for side in "ab":
                answer = [part(media=to_proto(sound))] if name + side == "sa" else [part(text=f"{name} {side}")]
                event = response(name + side, conversation=name)
                event.messages.add(role=types_pb2.ROLE_USER, parts=ask)
                event.response.CopyFrom(types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, parts=answer))
                log.append(RESPONSES, Event.wrap(event, key=name, source="test"))
        said: list[dict[str, Any]] = [{"to": f"{name}a", "preferred_over": f"{name}b"} for name in asks]
        said += [
            {"to": "t0b", "critique": "Wrong."},
            {"to": "sa", "critique": "Too low."},
            {"to": "t1a", "label": True},
        ]
        said += [{"to": "t0a", "ratings": {"overall": 1.0}}, {"to": "gone", "critique": "?"}]
        for number, one in enumerate(said):
            event = feedback(f"f{number}", **one)
            log.append(FEEDBACK, Event.wrap(event, key=one["to"][:-1], source="test", id=f"f{number}"))
    return home


def export(runner: CliRunner, *options: object) -> Any:
    return runner.invoke(app, ["export", *map(str, options)])


def loaded(folder: Path, name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import disable_progress_bars, load_dataset

        disable_progress_bars()
        return load_dataset(str(folder), name, split="train", cache_dir=str(folder.parent / f"cache-{folder.name}"))


def test_a_folder_gets_every_set_and_a_card(logged: Path, tmp_path: Path, runner: CliRunner) -> None:
    result = export(runner, "--to", tmp_path / "out", "--json")
    assert result.exit_code == ExitCode.OK, result.output
    assert json.loads(result.stdout) == {
        "to": str(tmp_path / "out"),
        "rows": ROWS,
        "not_in_the_file": {},
        "left_out": {"ratings or tags only": 1, "the response is not in the log": 1},
    }
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(["README.md", *(f"{name}.jsonl" for name in ROWS)])
    assert "ada" not in "".join(path.read_text() for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("files", ["jsonl", "parquet"])
@pytest.mark.parametrize("media", ["link", "copy", "inline"])
def test_datasets_loads_every_set_by_its_name(
    logged: Path, tmp_path: Path, runner: CliRunner, files: str, media: str
) -> None:
    folder = tmp_path / "out"
    export(runner, "--to", folder, "--files", files, "--media", media)
    for name, rows in ROWS.items():
        assert len(loaded(folder, name)) == rows
    (row,) = loaded(folder, "preference_images")
    assert [part["type"] for part in row["prompt"][0]["content"]] == ["image", "text"]
    (image,) = row["images"]
    if media == "inline" and files == "jsonl":
        assert image.startswith("data:image/png;base64,")
    elif media == "inline":
        assert image.size == (32, 32)
    else:
        assert (folder / image if media == "copy" else Path(image)).read_bytes() == png()
    assert (folder / "media").exists() == (media == "copy")


def test_paths_become_pictures_as_the_card_says(logged: Path, tmp_path: Path, runner: CliRunner) -> None:
    from datasets import Image, List

    export(runner, "--to", tmp_path / "out", "--files", "parquet")
    assert 'rows.cast_column("images", List(Image()))' in (tmp_path / "out" / "README.md").read_text()
    rows = loaded(tmp_path / "out", "preference_images").cast_column("images", List(Image()))
    assert rows[0]["images"][0].size == (32, 32)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file_gets_one_set_and_the_others_are_told(
    logged: Path, tmp_path: Path, runner: CliRunner, suffix: str
) -> None:
    target = tmp_path / f"pairs{suffix}"
    result = export(runner, "--to", target, "--set", "critique", "--json")
    document = json.loads(result.stdout)
    assert document["rows"] == {"critique": 1}
    assert document["not_in_the_file"]["preference"] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import load_dataset

        kind = "json" if suffix == ".jsonl" else "parquet"
        (row,) = load_dataset(kind, data_files=str(target), split="train", cache_dir=str(tmp_path / "cache"))
    assert row["completion"] == [{"role": "assistant", "content": "Wrong."}]


def test_a_range_of_the_log_as_in_a_replay(logged: Path, tmp_path: Path, runner: CliRunner) -> None:
    def rows(*options: str) -> int:
        result = export(runner, "--to", tmp_path / "out", "--overwrite", "--json", *options)
        return sum(json.loads(result.stdout)["rows"].values()) if result.exit_code == ExitCode.OK else 0

    assert rows("--from", "1h") == rows("--from", "beginning") == sum(ROWS.values())
    with open_log(Settings().effective_log_url) as log:
        ends = log.end_offsets(FEEDBACK)
    later = [text for part, end in ends.items() for text in ("--from", f"{part}@{end - 1 if end else 0}")]
    until = [text for part, end in ends.items() for text in ("--until", f"{part}@{end - 1 if end else 0}")]
    assert 0 < rows(*later) < sum(ROWS.values())
    assert rows(*later) + rows(*until) == sum(ROWS.values())
    assert rows("--until", "2001-01-01") == 0


def test_what_is_there_is_only_replaced_when_asked_and_when_it_is_an_export(
    logged: Path, tmp_path: Path, runner: CliRunner
) -> None:
    target = tmp_path / "out"
    assert export(runner, "--to", target).exit_code == ExitCode.OK
    again = export(runner, "--to", target)
    assert (again.exit_code, "--overwrite" in again.stderr) == (ExitCode.REFUSED, True)
    assert export(runner, "--to", target, "--overwrite").exit_code == ExitCode.OK
    (tmp_path / "home-of-others").mkdir()
    (tmp_path / "home-of-others" / "thesis.txt").write_text("years of work")
    refused = export(runner, "--to", tmp_path / "home-of-others", "--overwrite")
    assert (refused.exit_code, "holds other things" in refused.stderr) == (ExitCode.REFUSED, True)
    assert (tmp_path / "home-of-others" / "thesis.txt").exists()
    assert export(runner, "--to", target, "--set", "label").exit_code == ExitCode.REFUSED


@pytest.mark.parametrize("name", ["my_checkpoint.safetensors", "media/holiday.png", "notes/n.txt"])
def test_an_export_with_something_else_in_it_is_not_replaced(
    logged: Path, tmp_path: Path, runner: CliRunner, name: str
) -> None:
    target = tmp_path / "out"
    export(runner, "--to", target, "--media", "copy")
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_text("years of work")
    refused = export(runner, "--to", target, "--overwrite")
    assert (refused.exit_code, name.removesuffix("/n.txt") in refused.stderr) == (ExitCode.REFUSED, True)
    assert (target / name).read_text() == "years of work"
    (target / name).unlink()
    if name == "media/holiday.png":
        assert export(runner, "--to", target, "--overwrite").exit_code == ExitCode.OK
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".out")) == []


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file_that_is_no_export_is_not_replaced(logged: Path, tmp_path: Path, runner: CliRunner, suffix: str) -> None:
    target = tmp_path / f"mine{suffix}"
    target.write_text('{"prompt": "precious", "feedback_id": "f"}\n')
    refused = export(runner, "--to", target, "--overwrite")
    assert (refused.exit_code, "is not an export of ours" in refused.stderr) == (ExitCode.REFUSED, True)
    assert "precious" in target.read_text()
    target.unlink()
    assert export(runner, "--to", target).exit_code == ExitCode.OK
    again = export(runner, "--to", target, "--overwrite", "--set", "label")
    assert again.exit_code == ExitCode.OK, again.stderr


def test_an_earlier_export_stays_until_the_new_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    with replacing(target, is_file=False) as place:
        (place / "README.md").write_text(writer.MARK)
    rename, done = os.rename, []

    def failing(source: Path, to: Path) -> None:
        done.append(to)
        if len(done) == 2:
            raise OSError("no room")
        rename(source, to)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(CommandError, match="no room"), replacing(target, is_file=False) as place:
        (place / "label.jsonl").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in target.iterdir()] == ["README.md"]


def test_a_place_that_cannot_be_written_is_an_error_with_a_way_out(
    logged: Path, tmp_path: Path, runner: CliRunner
) -> None:
    (tmp_path / "file").write_text("")
    result = export(runner, "--to", tmp_path / "file" / "out")
    assert (result.exit_code, "choose another place" in result.stderr) == (ExitCode.FAILED, True), result.stderr
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    linked = export(runner, "--to", tmp_path / "link", "--overwrite")
    assert (linked.exit_code, "is a link: name what it leads to" in linked.stderr) == (ExitCode.REFUSED, True)


def test_events_that_cannot_be_read_are_counted(logged: Path, tmp_path: Path, runner: CliRunner) -> None:
    with open_log(Settings().effective_log_url) as log:
        for topic in (FEEDBACK, RESPONSES):
            held = next(iter(log.read(topic))).event
            log.append(topic, dataclasses.replace(held, id="broken", data=b"\xff\xff\xff"))
    document = json.loads(export(runner, "--to", tmp_path / "out", "--json").stdout)
    assert document["left_out"]["an event that cannot be read"] == 2
    assert document["rows"] == ROWS


def test_a_medium_that_is_gone_leaves_its_row_out_and_is_counted(
    logged: Path, tmp_path: Path, runner: CliRunner
) -> None:
    for path in (logged / "media").rglob("*.json"):
        path.unlink()
    result = export(runner, "--to", tmp_path / "out", "--json")
    document = json.loads(result.stdout)
    assert document["left_out"]["a medium is no longer in the store"] == 3
    assert set(document["rows"]) == {"preference", "critique", "label"}


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--to", "out.csv"], ExitCode.USAGE, "ends in .jsonl or .parquet"),
        (["--to", "out.jsonl", "--set", "pairs"], ExitCode.USAGE, "--set pairs: there are preference"),
        (["--to", "out.jsonl", "--media", "copy"], ExitCode.USAGE, "needs a folder"),
        (["--to", "out.jsonl", "--set", "label_media"], ExitCode.NOT_FOUND, "choose with --set: 3 in preference"),
        (["--to", "out", "--from", "yesterday"], ExitCode.USAGE, "no point in time"),
        (["--to", "out", "--until", "2001-01-01"], ExitCode.NOT_FOUND, "no feedback of this range"),
    ],
)
def test_wrong_options_say_what_to_do_and_leave_nothing_behind(
    logged: Path,
    tmp_path: Path,
    runner: CliRunner,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    code: ExitCode,
    sentence: str,
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    result = export(runner, *options)
    assert (result.exit_code, sentence in result.stderr) == (code, True), result.stderr
    assert not list((tmp_path / "work").iterdir())


def test_without_a_log_there_is_nothing_to_export(home: Path, tmp_path: Path, runner: CliRunner) -> None:
    result = export(runner, "--to", tmp_path / "out")
    assert result.exit_code == ExitCode.NOT_FOUND
    assert not (tmp_path / "out").exists()
