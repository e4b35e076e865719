"""Real replicas: policy services as processes of this machine, on one log and one registry."""

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
from prometheus_client.parser import text_string_to_metric_families

from anyloop.cli.child import Child
from anyloop.config import Settings
from anyloop.log import EventLog, open_log
from anyloop.registry import Registry, serving_version
from anyloop.transport import open_sync_channel
from bench.rollout.kubelet import Kubelet
from bench.rollout.versions import LINEAGE, Versions
from protos.anyloop.v1 import control_pb2, control_pb2_grpc
from tests.k8s.controlplane.program import free_ports

_START_SECONDS = 90.0
_STOP_SECONDS = 15.0
_PORTS = ("grpc", "control", "metrics", "health")


@dataclass
class Replica:
    name: str
    ports: dict[str, int]
    child: Child

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports['grpc']}"


class Fleet:
    """`with Fleet(folder, model, 3) as fleet: ...`: returns when all of them serve the promoted version.

    `environment`: more settings of the replicas; `certificates`: those of whoever asks them by this class.
    """

    def __init__(
        self,
        folder: Path,
        model: Path,
        replicas: int,
        environment: Mapping[str, str] | None = None,
        certificates: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder = folder
        self._model = model
        self._extra = environment or {}
        plain = Settings(_env_file=None, home=folder, model_dir=model, host="inprocess")  # type: ignore[call-arg]
        self.settings = plain.model_copy(update=dict(certificates or {}))
        self.log: EventLog = open_log(self.settings.effective_log_url)
        self.log.ensure_topics()
        self.registry = Registry(self.settings.effective_registry_dir)
        self.versions = Versions(self.registry, self.log)
        ports = free_ports(replicas * len(_PORTS))
        self.replicas = [
            self._start(f"policy-{number}", dict(zip(_PORTS, ports[number::replicas], strict=True)))
            for number in range(replicas)
        ]

    @property
    def target(self) -> str:
        """All replicas, as a gRPC target."""
        return "ipv4:" + ",".join(replica.address for replica in self.replicas)

    @property
    def promoted(self) -> str:
        return serving_version(self.log, LINEAGE) or ""

    def register(self, kubelet: Kubelet) -> None:
        for replica in self.replicas:
            kubelet.register(replica.name, replica.ports)

    def restart(self, number: int, *, signal_9: bool = True) -> None:
        """Ends the process and starts another on the same ports; says nothing to a kubelet."""
        replica = self.replicas[number]
        if signal_9:
            replica.child.kill()
        else:
            self._stop([replica])
        self.replicas[number] = self._start(replica.name, replica.ports)

    def status(self, number: int) -> control_pb2.ReplicaStatus:
        with open_sync_channel(self.settings, f"127.0.0.1:{self.replicas[number].ports['control']}") as channel:
            return control_pb2_grpc.ControlServiceStub(channel).GetStatus(control_pb2.GetStatusRequest(), timeout=5)

    def serving(self) -> list[str]:
        """The version of each replica; empty for one that does not answer."""
        found = []
        for number in range(len(self.replicas)):
            try:
                found.append(self.status(number).serving_version)
            except grpc.RpcError:
                found.append("")
        return found

    def metric(self, number: int, name: str, **labels: str) -> float:
        """The sum of the samples of a replica with that name and these labels."""
        url = f"http://127.0.0.1:{self.replicas[number].ports['metrics']}/metrics"
        text = httpx.get(url, timeout=5.0, trust_env=False).text
        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())

    def await_serving(self, version: str = "", seconds: float = _START_SECONDS) -> None:
        """Until every replica serves `version` (empty: any). Raises TimeoutError with what they said last."""
        deadline = time.monotonic() + seconds
        while True:
            serving = self.serving()
            if all(found and version in ("", found) for found in serving):
                return
            if time.monotonic() > deadline:
                logs = "\n".join(replica.child.log_tail(8) for replica in self.replicas)
                raise TimeoutError(f"replicas serve {serving}, not {version or 'anything'}:\n{logs}")
            time.sleep(0.1)

    def __enter__(self) -> "Fleet":
        try:
            self.await_serving()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop(self.replicas)
        self.log.close()

    def _start(self, name: str, ports: dict[str, int]) -> Replica:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("ANYLOOP_")},
            "OMP_NUM_THREADS": "1",
            "ANYLOOP_HOME": str(self._folder / name),
            "ANYLOOP_LOG_URL": self.settings.effective_log_url,
            "ANYLOOP_REGISTRY_DIR": str(self.settings.effective_registry_dir),
            "ANYLOOP_MEDIA_URL": self.settings.effective_media_url,
            "ANYLOOP_MODEL_DIR": str(self._model),
            "ANYLOOP_HOST": "inprocess",
            "ANYLOOP_POLICY_PORT": str(ports["grpc"]),
            "ANYLOOP_POLICY_CONTROL_PORT": str(ports["control"]),
            "ANYLOOP_METRICS_PORT": str(ports["metrics"]),
            "ANYLOOP_HEALTH_PORT": str(ports["health"]),
            **self._extra,
        }
        argv = [sys.executable, "-m", "services.policy"]
        return Replica(name, ports, Child(argv, environment, self._folder / f"{name}.log"))

    def _stop(self, replicas: list[Replica]) -> None:
        for replica in replicas:
            replica.child.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for replica in replicas:
            while replica.child.exit_status() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            replica.child.kill()
