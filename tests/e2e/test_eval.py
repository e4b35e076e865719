"""`anyloop eval` in front of real services: tiny-omni answers, a pinned copy of it too; the critique model judges."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from anyloop.log import CRITIQUES, RESPONSES, open_log
from anyloop.registry import Registry
from anyloop.registry.copies import copy_version

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
COMMAND = (sys.executable, "-m", "anyloop.cli")
PROMPTS = 4


def environment(home: Path) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ANYLOOP_")}
    return {**plain, "ANYLOOP_HOME": str(home), "COLUMNS": "200"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A machine's AnyLoop without the learner, and a second version of the policy that nothing has loaded."""
    home = tmp_path_factory.mktemp("machine") / "home"
    up = subprocess.Popen(
        [*COMMAND, "up", "--host=inprocess", "--no-trainer", "--port-offset=4400"],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert up.stdout is not None
        said = []
        for line in up.stdout:
            said.append(line)
            if line.startswith("logs "):
                break
        else:
            pytest.fail("".join(said))
        registry = Registry(home / "registry")
        copy_version(registry, "policy-000000", registry, lineage="policy", parent="policy-000000")
        yield home
    finally:
        if up.poll() is None:
            up.send_signal(signal.SIGTERM)
        up.communicate(timeout=90)


def evaluate(home: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [*COMMAND, "eval", f"--prompts={PROMPTS}", *arguments, "--json"],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_version_that_was_not_loaded_is_compared_with_the_serving_one_and_dropped(home: Path) -> None:
    found = evaluate(home, "--version=policy-000001", "--against=policy-000000", "--amu=2", "--amg=2", f"--out={home}")
    assert (found["versions"], found["against"]["versions"]) == (["policy-000001"], ["policy-000000"])
    assert 0.3 < found["mean"] < 0.9  # tiny-omni is right in half of held-out prompts
    # The same weights give the same answers to the same seeds, unless rounding in another batch turns one.
    assert found["duel"]["ties"] >= 8 * PROMPTS - 2
    choices = found["amg"]["choices"]
    assert [next(iter(choices[kind])) for kind in ("T2T", "T2I", "T2A", "T2V", "TI2TI")] == [
        "text",
        "image",
        "audio",
        "video",
        "text+image",
    ]
    assert 0 < found["amg"]["value"] < 10
    assert 1 <= found["amu"]["value"] <= 10
    assert (home / "eval.html").stat().st_size > 50_000
    url = json.loads((home / "up.json").read_text())["gateway_url"]
    models = httpx.get(f"{url}/v1/models", trust_env=False).json()["data"]
    assert "policy-000001" not in {model["id"] for model in models}


def test_the_critique_model_judges_and_leaves_nothing_in_the_log(home: Path) -> None:
    found = evaluate(home, "--judge=critique")
    assert found["critic"] == "critique-000000"
    # Its base calls answers right or wrong as the exact judge does in nine of ten cases and more.
    assert found["critic_agrees_with_world"]["rate"] > 0.75
    with open_log(f"sqlite:///{home / 'log.db'}") as log:
        for topic in (RESPONSES, CRITIQUES):
            assert sum(log.end_offsets(topic).values()) == 0
