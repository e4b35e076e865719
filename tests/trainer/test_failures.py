"""Which failures are waited for: those that end by themselves or by an operator's hand."""

import errno
import sqlite3
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from anyloop.log import LogError, UnknownTopic
from anyloop.registry import CheckpointError, Registry
from trainer.clients import ServiceError
from trainer.failures import cause_of, is_away
from trainer.publish import publish_weights


def database_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (LogError("broker away", retriable=True), "log"),
        (UnknownTopic("anyloop.responses.v1"), "log"),
        (LogError("wrong password"), "round"),
        (ServiceError("UNAVAILABLE", retriable=True, away=True), "service"),
        (ServiceError("RESOURCE_EXHAUSTED", retriable=True), "round"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "round"),
        (database_error(sqlite3.SQLITE_FULL), "disk"),
        (database_error(sqlite3.SQLITE_IOERR | (2 << 8)), "disk"),
        (database_error(sqlite3.SQLITE_CORRUPT), "round"),
        (CheckpointError("not whole"), "round"),
        (ZeroDivisionError(), "round"),
    ],
)
def test_the_cause_of_a_failure(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause
    assert is_away(error) == (cause != "round")


def test_weights_that_the_disk_does_not_take_leave_nothing_and_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    save_file({"a": torch.zeros(4)}, base / "model.safetensors")
    registry = Registry(tmp_path / "registry")
    parent = registry.import_base("policy", base).version

    def publish() -> str:
        tensors = {"a": torch.ones(4)}
        return publish_weights(registry, "policy", registry.path(parent), tensors, parent_version=parent).version

    def full(*_: object, **__: object) -> None:  # in the words of safetensors 0.8
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("trainer.publish.save_file", full)
        with pytest.raises(OSError) as caught:
            publish()
    assert cause_of(caught.value) == "disk"
    assert sorted(path.name for path in (tmp_path / "registry").iterdir()) == [".retired", parent]
    assert publish() == "policy-000001"


def test_deleting_a_version_writes_no_file_so_that_it_works_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")

    registry = Registry(tmp_path)
    used = {"feedback_ids": ["f"]}
    version = registry.publish("policy", write, parent="", weights_digest="d", metrics=used).version

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(Path, "touch", full)
    registry.delete(version)
    assert registry.versions("policy") == []
    assert registry.used_feedback("policy") == {"f": version}
