"""The command as a user has it: a process in the foreground that prints a URL, and stops when told."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anyloop.cli.app import app
from anyloop.cli.exits import ExitCode
from anyloop.cli.kafka.broker import free_port
from anyloop.log import TOPICS, open_log

pytestmark = pytest.mark.usefixtures("kafka_servers")  # skipped, or failed, where no broker can be had


def _started(home: Path, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "anyloop.cli", "--home", str(home), "kafka", "--port", str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("export ANYLOOP_LOG_URL="):
            return line.strip().partition("=")[2]
    raise AssertionError("no URL was printed")


def _ends(process: subprocess.Popen[str], how: signal.Signals) -> int:
    process.send_signal(how)
    process.communicate(timeout=60)
    return process.returncode


def test_a_broker_runs_until_it_is_told_to_stop_and_keeps_what_it_has(tmp_path: Path) -> None:
    port = free_port()
    for created, how in ((len(TOPICS), signal.SIGINT), (0, signal.SIGTERM)):
        process = _started(tmp_path, port)
        try:
            with open_log(_url(process)) as log:
                assert len(log.ensure_topics()) == created
        finally:
            status = _ends(process, how)
        assert status == ExitCode.OK


def test_a_taken_port_is_refused(runner: CliRunner, kafka_servers: str) -> None:
    result = runner.invoke(app, ["kafka", "--port", kafka_servers.rpartition(":")[2]])
    assert result.exit_code == ExitCode.USAGE
    assert "is taken" in result.stderr
