"""The outbox in front of a real broker that is killed or stopped in its tracks, in a process that is killed too."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from anyloop.cli.kafka.broker import LocalBroker
from anyloop.log import RESPONSES, TopicSpec, open_log
from anyloop.log.spool import SpooledWriter

ROOT = Path(__file__).parent.parent.parent

# Puts until it is killed, at a rate that leaves the broker time to fall behind and catch up.
PROGRAM = """
import itertools, sys, time
from functools import partial
from pathlib import Path
from anyloop.log import Event, RESPONSES, open_log
from anyloop.log.spool import SpooledWriter
from protos.anyloop.v1 import events_pb2
url, folder, first = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
spool = SpooledWriter(partial(open_log, url), folder).start()
for number in itertools.count(first):
    message = events_pb2.ResponseEvent(metadata={"filler": "x" * 500})
    spool.put(RESPONSES, Event.wrap(message, key=f"k{number % 50}", source="s", id=str(number)))
    print(number, flush=True)
    time.sleep(0.002)
"""


@pytest.mark.parametrize("patience", [{"TIMEOUT_S": "1", "DELIVERY_TIMEOUT_S": "120"}, {"DELIVERY_TIMEOUT_S": "1.5"}])
def test_everything_accepted_is_in_the_log_once_whoever_is_killed(
    new_broker: Callable[[], LocalBroker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: dict[str, str]
) -> None:
    """Also where the producer gives up on a batch (the second patience) that the broker has taken meanwhile."""
    for name, value in ({"TIMEOUT_S": "1"} | patience).items():
        monkeypatch.setenv(f"ANYLOOP_KAFKA_{name}", value)
    broker = new_broker()
    url = f"kafka://{broker.address}"
    with open_log(url) as log:
        log.ensure_topics([TopicSpec(RESPONSES, 4)])
    outbox, accepted = tmp_path / "spool", 0
    for trouble in ("kill", "pause"):
        command = [sys.executable, "-c", PROGRAM, url, str(outbox), str(accepted)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(1)
            if trouble == "kill":
                broker.kill()
                time.sleep(0.5)
                broker.start()
            else:
                broker.pause()
                time.sleep(3)  # longer than the producer's patience: what it sent waits in the broker's socket
                broker.resume()
            time.sleep(1)
            process.send_signal(signal.SIGKILL)
            said = process.stdout.read().split()
        accepted = int(said[-1]) + 1
        with SpooledWriter(partial(open_log, url), outbox) as spool:  # one more than was heard of may be there
            assert spool.flush(30)
        with open_log(url) as log:
            accepted = max(accepted, max(int(record.event.id) for record in log.read(RESPONSES)) + 1)
    with open_log(url) as log:
        found = Counter(int(record.event.id) for record in log.read(RESPONSES))
    broker.erase()
    assert accepted > 500
    assert sorted(found) == list(range(accepted))
    assert {number: count for number, count in found.items() if count > 1} == {}
