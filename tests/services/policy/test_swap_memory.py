"""A hundred swaps under load keep no more memory than twenty."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.models.random_omni import build_random_omni

ROOT = Path(__file__).parents[3]
PROGRAM = Path(__file__).parent / "hundred_swaps.py"
GROWTH_MB = 20.0  # seen without a leak: -13 to 7; with every tenth version kept on purpose: 65


def test_a_hundred_swaps_in_a_row_do_not_grow_the_process(tmp_path: Path) -> None:
    models = [build_random_omni(tmp_path / str(seed), seed, hidden=256) for seed in range(2)]
    command = [sys.executable, str(PROGRAM), *map(str, models)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["answers"] > found["swaps"]
    assert found["growth_mb"] < GROWTH_MB
