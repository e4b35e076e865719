"""`python -m k8s` where it cannot work: it says what to set, and its exit code tells a wrong setting from a missing
cluster. Where it works: tests/k8s/e2e."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(tmp_path: Path, **environment: str) -> tuple[int, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANYLOOP_", "KUBE"))}
    found = subprocess.run(
        [sys.executable, "-m", "k8s"],
        env={**kept, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "ANYLOOP_HOME": str(tmp_path), **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return found.returncode, found.stderr


def test_without_a_cluster_it_says_how_to_name_one(tmp_path: Path) -> None:
    code, said = run(tmp_path)
    assert code == 1
    assert "Set ANYLOOP_CONTROLLER_KUBECONFIG, or run in a pod" in said


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("ANYLOOP_CONTROLLER_RENEW_SECONDS", "60", "two controllers could act at once"),
        ("ANYLOOP_CONTROLLER_WORKERS", "0", "greater than or equal to 1"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, setting: str, value: str, said: str) -> None:
    code, found = run(tmp_path, **{setting: value})
    assert code == 2
    assert said in " ".join(found.split())
