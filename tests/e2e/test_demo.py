import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anyloop.world import SUBTASKS
from tests.models.random_omni import build_random_omni

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_a_small_demo_goes_round_once_and_reports_all_of_it(tmp_path: Path) -> None:
    """With random weights nothing can be learned; what counts here is that every step of the loop is taken."""
    model = build_random_omni(tmp_path / "model")
    small = {
        "ANYLOOP_MODEL_DIR": str(model),
        "ANYLOOP_TRAINER_MIN_FEEDBACK": "8",
        "ANYLOOP_TRAINER_CRITIQUE_EPOCHS": "1",
        "ANYLOOP_TRAINER_FRESH_PER_PROMPT": "0",
        "ANYLOOP_TRAINER_FILTER": "none",
    }
    options = ["--rounds=1", "--prompts=16", "--eval-prompts=1", "--host=inprocess", "--port-offset=4500", "--json"]
    command = [sys.executable, "-m", "anyloop.cli", "demo", *options, f"--out={tmp_path / 'out'}"]
    run = subprocess.run(command, env={**os.environ, **small}, capture_output=True, text=True, timeout=560)
    assert run.returncode == 0, run.stderr

    report = json.loads((tmp_path / "out" / "demo-report.json").read_text())
    assert report == json.loads(run.stdout)
    assert report["success"][0]["subtasks"].keys() == set(SUBTASKS)
    (round_,) = report["rounds"]
    assert round_["feedback_events"] == 16
    assert round_["decision"] in ("promoted", "rejected")
    assert round_["candidate"] == "policy-000001"
    assert {"feedback_modelling", "dpo", "gate"} <= round_["trainer"]["seconds"].keys()
    assert report["summary"]["requests_failed"] == 0
    assert report["summary"]["requests_served"] > 0
    assert report["summary"]["peak_memory_bytes"] > 2**28
    assert (tmp_path / "out" / "demo-report.html").read_text().startswith("<!doctype html>")
