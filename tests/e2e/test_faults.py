"""The quick part of `make test-faults`: the broker and the policy service killed under load."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anyloop.cli.exits import CommandError
from anyloop.cli.kafka.artifacts import jars, java

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


def test_nothing_is_lost_or_learned_twice_when_the_broker_and_the_policy_are_killed(tmp_path: Path) -> None:
    try:
        java(), jars()
    except CommandError as error:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"CI needs a Kafka broker: {error}", pytrace=False)
        pytest.skip(f"NO KAFKA BROKER, nothing of this is tested: {error}")
    command = [sys.executable, "-m", "tests.faults", "--quick", f"--out={tmp_path}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert run.returncode == 0, run.stderr + run.stdout

    report = json.loads((tmp_path / "faults.json").read_text())
    assert report["holds"] is True
    broker, policy = report["scenarios"]
    for row in (broker, policy):
        responses, feedback = row["responses"], row["feedback"]
        assert responses["accepted"] == responses["logged"] > 20
        assert feedback["accepted"] == feedback["logged"] == feedback["learned"] > 20
        assert responses["duplicates"] == feedback["duplicates"] == 0
        assert row["policy_versions"] > 0
    assert broker["failed"] == {}
    assert broker["peak_outbox_bytes"] > 10_000  # answers went on while nobody took their events
    assert policy["failed"].keys() <= {"chat 503 · policy killed (1)", "chat broken stream · policy killed (1)"}
