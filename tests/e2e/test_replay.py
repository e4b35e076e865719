"""`anyloop replay` with real services: killed in the middle, taken up again, nothing changed but its own lineage."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anyloop.config import Settings
from anyloop.log import CHECKPOINTS, FEEDBACK, RESPONSES, Event, open_log
from anyloop.registry import Registry, announce
from anyloop.sequence import Sequencer
from protos.anyloop.v1 import types_pb2
from tests.models.random_omni import build_random_omni
from tests.trainer.events import feedback, spoken

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SAID = 12
QUICK = {"critique_epochs": 1, "dpo_epochs": 1, "fresh_per_prompt": 0, "critique_probe": 0, "min_pairs": 2}
BEGIN = ["--from", "beginning", "--gate-suite", "tests.cli.two_questions:Suite"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_omni(tmp_path_factory.mktemp("model"))


@pytest.fixture
def live(tmp_path: Path, model: Path) -> Settings:
    """What a live loop has left: answers, people's corrections, and the base in service."""
    settings = Settings(_env_file=None, home=tmp_path / "home", model_dir=model)  # type: ignore[call-arg]
    settings.home.mkdir()
    sequencer = Sequencer.from_pretrained(model)
    with open_log(settings.effective_log_url) as log:
        log.ensure_topics()
        for lineage in ("policy", "critique"):
            base = Registry(settings.effective_registry_dir).import_base(lineage, model)
            announce(log, lineage, base.version, "promoted", digest=base.weights_digest)
        better = [types_pb2.ContentPart(text="blue circle")]
        for n in range(SAID):
            event = spoken(sequencer, f"r{n}", f"Draw {n}.", "red square")
            said = feedback(f"f{n}", f"r{n}", critique="It should be blue.", refinement=better, created=2000 + n)
            log.append(RESPONSES, Event.wrap(event, key=f"r{n}", source="test", id=f"r{n}"))
            log.append(FEEDBACK, Event.wrap(said, key=f"r{n}", source="test", id=f"f{n}"))
    return settings


def command(live: Settings, *arguments: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "ANYLOOP_HOME": str(live.home),
        "ANYLOOP_MODEL_DIR": str(live.model_dir),
        "COLUMNS": "200",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "anyloop.cli", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def family(folder: Path) -> list[str]:
    """Command lines of the processes that work in the replay's home."""
    mark = f"ANYLOOP_HOME={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_a_replay_killed_and_taken_up_again_makes_its_lineage_and_leaves_the_live_loop_alone(live: Settings) -> None:
    folder = live.home / "replays" / "lab"
    with open_log(live.effective_log_url) as log:
        ends = {topic: log.end_offsets(topic) for topic in (RESPONSES, FEEDBACK, CHECKPOINTS)}
    settings = [f"--set={name}={value}" for name, value in QUICK.items()]
    first = command(live, "replay", "--into", "lab", *BEGIN, *settings)
    journal = folder / "trainer" / "rounds.jsonl"
    deadline = time.monotonic() + 120
    while not journal.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert first.poll() is None, first.communicate()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    deadline = time.monotonic() + 30
    while family(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert family(folder) == [], "what a killed command started ends with it"

    again = command(live, "replay", "--into", "lab", "--json")
    told, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    report = json.loads(told)
    assert [(row["version"], row["parent"], row["feedback"]) for row in report["versions"]] == [
        ("lab-000001", "policy-000000", SAID)
    ]
    assert family(folder) == []

    registry = Registry(live.effective_registry_dir)
    assert registry.verify("lab-000001").gate is not None
    assert registry.lineages() == ["critique", "lab", "policy"]
    assert (registry.versions("policy"), registry.versions("critique")) == (["policy-000000"], ["critique-000000"])
    with open_log(live.effective_log_url) as log:
        assert {topic: log.end_offsets(topic) for topic in ends} == ends

    compared = command(live, "checkpoints", "diff", "policy-000000", "lab-000001", *BEGIN[2:], "--evaluate", "--json")
    told, errors = compared.communicate(timeout=120)
    assert compared.returncode == 0, errors
    evaluation = json.loads(told)["evaluation"]
    assert evaluation["prompts"] == 4
    assert set(evaluation["subtasks"]) == {"draw", "sing"}
