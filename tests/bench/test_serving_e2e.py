import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.e2e
def test_one_short_run_has_every_contender_side_by_side_and_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.serving", "--quick", "--models=tiny-omni", "--streams=2"]
    ended = subprocess.run(
        [*command, f"--out={tmp_path}"], capture_output=True, text=True, timeout=280, env={**os.environ}, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:] + ended.stdout[-2000:]
    report = json.loads((tmp_path / "serving.json").read_text())
    contenders = report["models"]["tiny-omni"]["contenders"]
    assert len(contenders) == 4
    for modes in contenders.values():
        for mode in ("greedy", "sampled"):
            point = modes[mode]["2"]
            assert point["failed"] == 0
            assert point["shortest_answer"] == report["plan"]["max_tokens"]
            assert point["tokens_per_second"] > 0
            assert point["peak_memory_bytes"] > 2**20
    frozen = {name: found for name, found in report["models"]["tiny-omni"]["checks"].items() if found}
    assert [list(found.values()) for found in frozen.values()] == [[True], [False]]  # the peer's sampling, and ours
    assert report["models"]["tiny-omni"]["floors"]["2"]["engine"]["greedy"] > 0
    assert (tmp_path / "serving.png").stat().st_size > 10_000
    assert "whole stack" in ended.stdout
    assert not _processes_that_mention(str(tmp_path))


def _processes_that_mention(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line:
                found.append(line)
    return found
