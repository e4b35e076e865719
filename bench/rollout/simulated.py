"""Fleets that are too large for one machine: real pods on a real API server, replicas that are an entry in memory."""

import itertools
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

from anyloop.config import Settings
from anyloop.log import open_log
from anyloop.registry import announce
from anyloop.registry.announce import APPROVED, PROMOTED
from bench.rollout.controller import Controller, service_account
from bench.rollout.memory_controller import SWAP_SECONDS
from bench.rollout.pods import pod, pod_status
from bench.rollout.rollouts import Rollouts
from bench.rollout.versions import BASE, LINEAGE
from tests.k8s.controlplane.cluster import ControlPlane

MAX_SWAPPING = 10
STEPS = ({"replicas": "10%"}, {"replicas": "50%"})
_PORTS = {"grpc": 50051, "control": 50061, "metrics": 9100, "health": 8086}
_SAMPLE_SECONDS = 0.2


def measure(plane: ControlPlane, folder: Path, replicas: int, idle_seconds: float = 20.0) -> dict[str, Any]:
    """One rollout over `replicas` pods, and `idle_seconds` without one."""
    rollouts = Rollouts(plane)
    home = folder / f"simulated-{replicas}"
    log_url = Settings(_env_file=None, home=home).effective_log_url  # type: ignore[call-arg]
    with open_log(log_url) as log:
        log.ensure_topics()
        announce(log, LINEAGE, BASE, PROMOTED, reason="the beginning", decided_by="bench")
        creating = time.monotonic()
        _create_pods(plane, rollouts.namespace, replicas)
        created = time.monotonic()
        command = [sys.executable, "-m", "bench.rollout.memory_controller", BASE]
        kubeconfig = service_account(rollouts)
        with Controller(home, kubeconfig, rollouts.namespace, log_url, command=command, pace={}) as controller:
            controller.await_leading()
            rollouts.create(
                "policy", strategy={"type": "Canary", "steps": list(STEPS)}, maxSwapping=min(MAX_SWAPPING, replicas)
            )
            rollouts.until("policy", lambda status: status.get("replicas", {}).get("stable") == replicas, 60)
            synced = time.monotonic()
            process = psutil.Process(controller.pid)
            idle = _over(process, controller, lambda: time.sleep(idle_seconds))
            version = "policy-000001"

            def roll_out() -> None:
                announce(log, LINEAGE, version, APPROVED, parent=BASE, decided_by="bench")
                rollouts.until_phase("policy", "Completed", version=version, seconds=600)

            row = _over(process, controller, roll_out)
    ideal = _ideal(replicas)
    return {
        "replicas": replicas,
        "create_pods_seconds": created - creating,
        "start_to_known_seconds": synced - created,
        "ideal_seconds": ideal,
        "over_ideal_seconds": row["seconds"] - ideal,
        **row,
        "api_calls_total": sum(row["api_calls"].values()),
        "idle": idle,
        "status": {"peak": rollouts.status("policy")["history"][0]["peak"]},
    }


def _over(process: psutil.Process, controller: Controller, action: Any) -> dict[str, Any]:
    """Seconds, CPU seconds, the largest memory, and calls to the API server by verb and resource, while it runs."""
    calls, cpu = _calls(controller), _cpu(process)
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(action)
        most = process.memory_info().rss
        while not done.done():
            most = max(most, process.memory_info().rss)
            time.sleep(_SAMPLE_SECONDS)
        done.result()
    seconds = time.monotonic() - began
    return {
        "seconds": seconds,
        "cpu_seconds": _cpu(process) - cpu,
        "rss_mb": most / 2**20,
        "api_calls": {name: count - calls.get(name, 0) for name, count in _calls(controller).items()},
    }


def _calls(controller: Controller) -> dict[str, int]:
    samples = controller.samples("anyloop_controller_api_calls_total")
    return {f"{labels['verb']} {labels['resource']}": int(value) for labels, value in samples}


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _ideal(replicas: int) -> float:
    """What the changes take when `MAX_SWAPPING` at a time follow each other without a pause."""
    parallel = min(MAX_SWAPPING, replicas)
    bounds = [0, -(-replicas // 10), -(-replicas // 2), replicas]
    batches = sum(-(-(after - before) // parallel) for before, after in itertools.pairwise(bounds))
    return batches * SWAP_SECONDS


def _create_pods(plane: ControlPlane, namespace: str, count: int) -> None:
    context = ssl.create_default_context(cafile=str(plane.certificate))
    headers = {"Authorization": f"Bearer {plane.token}"}
    path = f"/api/v1/namespaces/{namespace}/pods"
    with httpx.Client(base_url=plane.url, verify=context, headers=headers, trust_env=False, timeout=30) as client:

        def create(number: int) -> None:
            name = f"policy-{number}"
            status = pod_status(ready=True, ip=f"10.{number // 65536}.{number // 256 % 256}.{number % 256}")
            client.post(path, json=pod(name, _PORTS)).raise_for_status()
            merge = {"Content-Type": "application/merge-patch+json"}
            client.patch(f"{path}/{name}/status", json=status, headers=merge).raise_for_status()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(create, range(count)))
