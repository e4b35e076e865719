"""Prometheus's own judge of rules. Debian's package `prometheus` has it; without it nothing of the rules is proven."""

import os
import shutil
import subprocess

import pytest


def promtool(*arguments: str) -> str:
    """What it says. A verdict against the rules fails the test."""
    program = shutil.which("promtool")
    if program is None:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail("CI needs promtool: install the Debian package prometheus", pytrace=False)
        pytest.skip("NO PROMTOOL, no rule is tested: install the Debian package prometheus")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said
