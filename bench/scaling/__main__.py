"""`python -m bench.scaling`: a table on stdout, `scaling.json` under `--out`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from anyloop.cli.exits import CommandError
from anyloop.cli.kafka.broker import LocalBroker
from anyloop.cli.supervisor import handled
from bench.scaling.consumers import consumer_costs
from bench.scaling.gateway import gateway_costs

_WHAT = {
    "answer": "gateway, an answer of 64 tokens",
    "streamed_answer": "gateway, the same streamed in 16 messages",
    "feedback": "gateway, a piece of feedback",
    "broker_append": "broker, an event appended (batches of 500)",
    "broker_read": "broker, an event read by one consumer",
    "follower": "gateway, an event of the responses topic followed",
    "intake": "trainer, an event taken in and joined",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--requests", type=int, default=3000, help="of each kind, to the gateway")
    parser.add_argument("--events", type=int, default=20_000, help="in the log, for its readers")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder of the report")
    options = parser.parse_args()
    try:
        with (
            handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
            tempfile.TemporaryDirectory() as folder,
            LocalBroker(Path(folder) / "broker") as broker,
        ):
            assert broker.pid is not None
            costs = consumer_costs(f"kafka://{broker.address}/readers.", broker.pid, options.events)
            costs |= gateway_costs(f"kafka://{broker.address}/gateway.", Path(folder) / "home", options.requests)
    except KeyboardInterrupt:
        return 130
    except CommandError as error:
        print(error, file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scaling.json").write_text(json.dumps(costs, indent=1) + "\n")
    table = Table("one of", "CPU, microseconds", "a core does, per second", box=None)
    for name, words in _WHAT.items():
        table.add_row(words, f"{1e6 * costs[name]:.0f}", f"{1 / costs[name]:,.0f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
