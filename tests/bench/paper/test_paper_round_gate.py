"""What becomes of a later round's weights when the gate refuses them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.paper import methods


def work(tmp_path: Path, number: int) -> Any:
    base, folder = tmp_path / "base", tmp_path / "policy"
    base.mkdir()
    (base / "weights").write_text("old")

    def write(name: str, tensors: object) -> Path:
        folder.mkdir()
        (folder / "weights").write_text("new")
        return folder

    engine = SimpleNamespace(load=lambda version, folder, serve: None)
    return SimpleNamespace(cell=SimpleNamespace(round=number), base=base, write=write, engine=engine)


@pytest.mark.parametrize(
    ("number", "promoted", "answers", "kept"),
    [(1, False, "learned", "new"), (2, True, "learned", "new"), (2, False, "base", "old")],
    ids=["first-round-has-no-gate", "promoted", "refused"],
)
def test_refused_weights_neither_answer_nor_begin_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, promoted: bool, answers: str, kept: str
) -> None:
    monkeypatch.setattr(methods, "gate", lambda work: (promoted, "a reason"))
    monkeypatch.setattr(methods, "evaluated", lambda work, version, metrics: (version, metrics))
    version, metrics = methods.learned(work(tmp_path, number), {}, {"pairs": 3})
    assert version == answers
    assert (tmp_path / "policy" / "weights").read_text() == kept
    assert metrics == ({"pairs": 3} | ({"promoted": promoted, "gate": "a reason"} if number > 1 else {}))
