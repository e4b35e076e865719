from pathlib import Path

import pytest

from anyloop.datasets.align_anything.keys import KeysError, KeyTable
from anyloop.world import SUBTASKS


def extended(tmp_path: Path, text: str) -> KeyTable:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    return KeyTable.load(path)


def test_ours_names_the_eight_subtasks() -> None:
    assert set(KeyTable.load().subtasks) == set(SUBTASKS)


@pytest.mark.parametrize(
    ("path", "subtask"),
    [
        ("text-to-image/train-00000-of-00003.parquet", "T2I"),
        ("text-image-to-text/train.jsonl", "TI2T"),
        ("text-image-to-text-image/train_27k.json", "TI2TI"),
        ("examples/example_tv2t.parquet", "TV2T"),
        ("text-to-audio/more/T2T.jsonl", "T2T"),
        ("t2v.jsonl", "T2V"),
        ("data/train.jsonl", None),
    ],
)
def test_a_path_names_its_subtask(path: str, subtask: str | None) -> None:
    assert KeyTable.load().subtask_of_path(path) == subtask


def test_names_of_subtasks_are_taken_in_either_form() -> None:
    assert KeyTable.load().subtask("text-to-Image") == KeyTable.load().subtask("t2i") == "T2I"
    with pytest.raises(KeysError, match="no subtask 'T2X': there are T2T"):
        KeyTable.load().subtask("T2X")


def test_a_user_s_alternatives_come_before_ours(tmp_path: Path) -> None:
    table = extended(tmp_path, '[T2T]\ncritique = ["wrong_{n}"]\nletters = { humour = "h" }\n[common]\nscale = 5\n')
    keys = table.subtasks["T2T"]
    assert keys.critique[:2] == ["wrong_{n}", "text_critique_{n}"]
    assert keys.letters["humour"] == "h"
    assert keys.letters["safety"] == "s"
    assert table.subtasks["T2I"].scale == 5
    assert "wrong_{n}" not in table.subtasks["T2I"].critique


def test_a_user_s_parts_replace_ours_and_new_subtasks_are_added(tmp_path: Path) -> None:
    table = extended(
        tmp_path,
        '[T2T]\nprompt = [{ text = ["ask"] }]\n'
        '[TIA2T]\nnames = ["mixed"]\nprompt = [{ image = ["i"] }, { audio = ["a"] }]\nanswer = [{ text = ["r{n}"] }]\n',
    )
    assert [part.keys for part in table.subtasks["T2T"].prompt] == [["ask"]]
    assert table.subtask_of_path("mixed/a.jsonl") == "TIA2T"
    assert table.subtasks["TIA2T"].preference == table.subtasks["T2T"].preference


def test_the_digest_tells_tables_apart(tmp_path: Path) -> None:
    assert KeyTable.load().digest == KeyTable.load().digest != extended(tmp_path, "[common]\nscale = 5\n").digest


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[T2T", "cannot be read"),
        ("scale = 5", "scale stands outside of a table"),
        ("[T2T]\ncritiques = []", r"\[T2T\]: critiques: Extra inputs"),
        ('[T2T]\nprompt = [{ text = ["a"], image = ["b"] }]', "keys of one modality"),
        ("[T2T]\nprompt = []", "at least 1 item"),
        ('[NEW]\nprompt = [{ text = ["a"] }]', r"\[NEW\]: answer: Field required"),
        ("[common]\nscale = 0", "greater than 0"),
    ],
)
def test_a_table_that_cannot_be_used_says_where(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(KeysError, match=sentence):
        extended(tmp_path, text)


def test_a_table_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="cannot be read"):
        KeyTable.load(tmp_path / "none.toml")


def test_the_documented_table_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    table = extended(tmp_path, text.split("```toml")[1].split("```")[0])
    assert table.subtasks["T2T"].critique[0] == "what_is_wrong_{n}"
    assert table.subtasks["T2V"].answer[0].keys == ["clips.{n}.file"]
    assert "TIA2T" in table.subtasks
