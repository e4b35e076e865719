"""The rounds of a replay, against scripted services: results in the main registry, whatever is killed in between."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import trainer.replay.__main__ as replay
from anyloop.log import FEEDBACK, RESPONSES
from anyloop.registry import Registry
from anyloop.sequence import Sequencer
from tests.trainer.loop import FAST, Loop, open_sqlite_loop
from trainer.config import TrainerSettings
from trainer.replay.results import Results

SAID = 12
PLAN: dict[str, Any] = {
    "lineage": "lab",
    "algorithm": "dpo",
    "rounds": 2,
    "base": "policy-000000",
    "critique": "critique-000000",
    "begin": {FEEDBACK: {"0": 5}},
    "end": {FEEDBACK: {"0": 17}, RESPONSES: {"0": 40}},
    "settings": {name: str(value) for name, value in FAST.items()},
    "asked": {"from": ["beginning"]},
    "counts": {"usable": SAID},
}


@pytest.fixture
def loop(tmp_path: Path, checkpoint: Path, sequencer: Sequencer) -> Iterator[Loop]:
    """The home of a replay, with its feedback in the log."""
    home = tmp_path / "replays" / "lab"
    home.mkdir(parents=True)
    with open_sqlite_loop(home, checkpoint, sequencer) as opened:
        opened.say(SAID)
        yield opened


@pytest.fixture
def main_registry(tmp_path: Path, checkpoint: Path) -> Registry:
    registry = Registry(tmp_path / "registry")
    registry.import_base("policy", checkpoint)
    return registry


@pytest.fixture
def program(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Arguments of `python -m trainer.replay`, with the environment that the supervisor gives it."""
    for name, value in loop.settings.model_dump(exclude_none=True).items():
        monkeypatch.setenv(f"ANYLOOP_{name.upper()}", str(value))
    for name in TrainerSettings.model_fields:
        monkeypatch.setenv(f"ANYLOOP_TRAINER_{name.upper()}", "0")  # what the program exports is gone after the test
        monkeypatch.delenv(f"ANYLOOP_TRAINER_{name.upper()}")
    (loop.home / "replay.json").write_text(json.dumps(PLAN))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield [
        *("--plan", str(loop.home / "replay.json")),
        *("--registry", str(tmp_path / "registry")),
        *("--gate", str(tmp_path / "gate")),
    ]
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def gate(loop: Loop) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=loop.gate().run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def used(registry: Registry) -> list[str]:
    return [name for version in registry.versions("lab") for name in registry.manifest(version).metrics["feedback_ids"]]


def test_every_round_is_a_version_of_the_new_lineage(
    loop: Loop, main_registry: Registry, program: list[str], tmp_path: Path
) -> None:
    with gate(loop):
        assert replay.main(program) == 0
    first, second = (main_registry.verify(version) for version in main_registry.versions("lab"))
    assert (first.version, first.parent, first.base) == ("lab-000001", "policy-000000", "policy-000000")
    assert sorted(used(main_registry)) == sorted(f"f{n}" for n in range(SAID)), "each once"
    assert first.gate is not None
    assert second.gate is not None
    assert (first.gate["outcome"], first.gate["candidate"]) == ("promoted", "lab-000001")
    # The scripted policy is right from the first new version on, so the second gains nothing and is rejected.
    assert (second.parent, second.gate["outcome"], second.gate["serving"]) == ("lab-000001", "rejected", "lab-000001")
    kept = json.loads((tmp_path / "gate" / "lab-000001.json").read_text())
    assert kept["evaluation"]["version"] == "lab-000001"


def test_a_version_says_what_it_comes_from(loop: Loop, main_registry: Registry, program: list[str]) -> None:
    with gate(loop):
        replay.main(program)
    manifest = main_registry.manifest("lab-000001")
    assert manifest.offsets == {f"replay/{FEEDBACK}": {"0": 17}, f"replay/{RESPONSES}": {"0": 40}}
    source = manifest.metrics["replay"]
    assert (source["base"], source["begin"], source["asked"]) == ("policy-000000", PLAN["begin"], PLAN["asked"])
    assert manifest.metrics["settings"]["critique_lr"] == 1e-3
    assert manifest.metrics["settings"]["max_feedback"] == SAID / 2


def test_nothing_of_the_live_lineage_is_touched(loop: Loop, main_registry: Registry, program: list[str]) -> None:
    with gate(loop):
        replay.main(program)
    assert main_registry.versions("policy") == ["policy-000000"]
    assert main_registry.used_feedback("policy") == {}


@pytest.mark.parametrize("killed_at", ["_add", "_copy_evaluation"])
def test_killed_while_it_publishes_and_started_again_it_has_every_version_once(
    loop: Loop, main_registry: Registry, program: list[str], killed_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = type("Killed", (BaseException,), {})
    original, calls = getattr(Results, killed_at), []

    def dies_after_the_first(self: Results, *arguments: Any) -> Any:
        done = original(self, *arguments)
        calls.append(done)
        if len(calls) == 1:
            raise killed
        return done

    monkeypatch.setattr(Results, killed_at, dies_after_the_first)
    with gate(loop):
        with pytest.raises(killed):
            replay.main(program)
        assert replay.main(program) == 0
    assert main_registry.versions("lab") == ["lab-000001", "lab-000002"]
    assert sorted(used(main_registry)) == sorted(f"f{n}" for n in range(SAID))
    assert all(main_registry.manifest(version).gate for version in main_registry.versions("lab"))


def test_a_signal_ends_it_as_interrupted_and_the_next_start_finishes(
    loop: Loop, main_registry: Registry, program: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, interrupted = replay.train, []

    def terminate_after_the_first_phase() -> None:
        journal = loop.home / "trainer" / "rounds.jsonl"
        while not journal.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    def told_to_stop(arguments: list[str]) -> int:
        if not interrupted:
            interrupted.append(True)
            threading.Thread(target=terminate_after_the_first_phase, daemon=True).start()
        return train(arguments)

    monkeypatch.setattr(replay, "train", told_to_stop)
    assert replay.main(program) == replay.INTERRUPTED  # no gate runs: the round waits for one
    assert len(main_registry.versions("lab")) == 0
    with gate(loop):
        assert replay.main(program) == 0
    assert len(main_registry.versions("lab")) == 2


def test_fewer_feedback_than_rounds_ends_when_nothing_is_left(
    loop: Loop, main_registry: Registry, program: list[str]
) -> None:
    (loop.home / "replay.json").write_text(json.dumps(PLAN | {"rounds": 5, "counts": {"usable": 2 * SAID}}))
    with gate(loop):
        assert replay.main(program) == 0
    assert len(used(main_registry)) == SAID


def test_a_setting_that_is_gone_in_this_release_is_told(loop: Loop, program: list[str]) -> None:
    (loop.home / "replay.json").write_text(json.dumps(PLAN | {"settings": {"dpo_rl": "1"}}))
    assert replay.main(program) == replay.USAGE
