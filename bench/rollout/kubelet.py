"""A tiny kubelet: replicas that are processes of this machine appear as pods, Ready as their gRPC health says."""

import threading
import urllib.error
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.rollout.pods import LABELS, pod, pod_status
from tests.k8s.controlplane.cluster import ControlPlane

_LOOK_SECONDS = 0.1
_PROBE_SECONDS = 1.0


@dataclass
class _Registered:
    name: str
    ports: dict[str, int]
    restarts: int = 0
    said: dict[str, Any] = field(default_factory=dict)  # the status that the API server has


class Kubelet:
    """`with Kubelet(plane, namespace) as kubelet: kubelet.register("policy-0", ports)`.

    While the API server is away, what changed is told when it is back.
    """

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane = plane
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._registered: dict[str, _Registered] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubelet", daemon=True)

    def register(self, name: str, ports: dict[str, int], labels: dict[str, str] = LABELS) -> None:
        self._plane.request("POST", self._pods, pod(name, ports, labels))
        with self._lock:
            self._registered[name] = _Registered(name, ports)

    def restarted(self, name: str) -> None:
        """The container of this pod runs again in another process."""
        with self._lock:
            self._registered[name].restarts += 1

    def remove(self, name: str) -> None:
        """The pod is gone, as after a scale-down."""
        with self._lock:
            self._registered.pop(name)
        self._plane.request("DELETE", f"{self._pods}/{name}?gracePeriodSeconds=0")

    def ready(self) -> list[str]:
        """The pods that were Ready at the last look."""
        with self._lock:
            return [one.name for one in self._registered.values() if one.said == pod_status(ready=True, **_of(one))]

    def __enter__(self) -> "Kubelet":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for name in list(self._registered):
            self.remove(name)

    def _run(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            with self._lock:
                all_of_them = list(self._registered.values())
            for one in all_of_them:
                status = pod_status(ready=_serves(one.ports["health"]), **_of(one))
                if status != one.said:
                    self._tell(one, status)

    def _tell(self, one: _Registered, status: dict[str, Any]) -> None:
        try:
            self._plane.request("PATCH", f"{self._pods}/{one.name}/status", status, "application/merge-patch+json")
            one.said = status
        except OSError as error:  # the API server is away, or starting: told at the next look
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (404, 429):
                raise  # 404: the pod was removed meanwhile


def _of(one: _Registered) -> dict[str, Any]:
    return {"restarts": one.restarts}


def _serves(port: int) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_PROBE_SECONDS)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
