"""`python -m bench.rollout`: two tables on stdout, `rollout.json` under `--out`.

Exit code 1 when a request failed that met no bad version, or a bad version was not held at its canary.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported anywhere below

from rich.console import Console

from anyloop.cli.supervisor import handled
from bench.rollout import real, simulated
from bench.rollout.memory_controller import SWAP_SECONDS
from bench.rollout.table import failed, show
from tests.k8s.controlplane.build import ControlPlaneMissing, kubernetes_version
from tests.k8s.controlplane.cluster import ControlPlane


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.rollout", description="rollouts on a real API server")
    parser.add_argument("--rollouts", type=int, default=5, help="sound versions, one after another; 0: no real run")
    parser.add_argument("--fleets", default="10,100,1000", help="simulated replicas, comma-separated; empty for none")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder of the report")
    options = parser.parse_args(arguments)
    fleets = [int(count) for count in options.fleets.split(",") if count]
    progress = Console(stderr=True)
    try:
        with (
            handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
            tempfile.TemporaryDirectory() as folder,
            progress.status("kube-apiserver and etcd") as status,
            ControlPlane(Path(folder) / "control-plane") as plane,
        ):
            rows = real.measure(plane, Path(folder), options.rollouts, status.update) if options.rollouts else []
            simulations = []
            for count in fleets:
                status.update(f"{count} simulated replicas")
                simulations.append(simulated.measure(plane, Path(folder), count))
    except ControlPlaneMissing as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    report = {
        "plan": {
            "rollouts": options.rollouts,
            "clients": real.CLIENTS,
            "fleets": fleets,
            "max_swapping": simulated.MAX_SWAPPING,
            "swap_seconds": SWAP_SECONDS,
            "kubernetes": kubernetes_version(),
        },
        "real": [{name: value for name, value in row.items() if name != "attempts"} for row in rows],
        "simulated": simulations,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rollout.json").write_text(json.dumps(report, indent=1) + "\n")
    # A table cut at the width of a pipe would say nothing.
    show(report, Console() if sys.stdout.isatty() else Console(width=160))
    return 1 if failed(report) else 0


if __name__ == "__main__":
    sys.exit(main())
