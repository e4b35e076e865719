"""A pod as the controller sees it: where its replica is reached, and whether it is the same process as before."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from k8s.api import Json

CONTROL_PORT = "control"
METRICS_PORT = "metrics"


@dataclass(frozen=True)
class Pod:
    namespace: str
    name: str
    uid: str
    labels: Mapping[str, str] = field(default_factory=dict, compare=False)
    ip: str = ""
    control_port: int = 0
    metrics_port: int = 0
    ready: bool = False
    ending: bool = False
    incarnation: str = ""  # of the container behind the control port: another one has begun anew

    @classmethod
    def read(cls, pod: Json) -> "Pod":
        metadata, spec, status = pod["metadata"], pod.get("spec", {}), pod.get("status", {})
        ports = {
            port.get("name"): (int(port["containerPort"]), container["name"])
            for container in [*spec.get("initContainers", ()), *spec.get("containers", ())]
            for port in container.get("ports", ())
        }
        control, container = ports.get(CONTROL_PORT, (0, ""))
        states = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
        state: Json = next((one for one in states if one.get("name") == container), {})
        return cls(
            namespace=metadata.get("namespace", ""),
            name=metadata["name"],
            uid=metadata.get("uid", ""),
            labels=metadata.get("labels") or {},
            ip=status.get("podIP", ""),
            control_port=control,
            metrics_port=ports.get(METRICS_PORT, (0, ""))[0],
            ready=any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", ())),
            ending="deletionTimestamp" in metadata or status.get("phase") in ("Succeeded", "Failed"),
            incarnation=f"{state.get('containerID', '')}/{state.get('restartCount', 0)}",
        )

    @property
    def usable(self) -> bool:
        """A replica that answers clients, and whose weights can be changed."""
        return self.ready and not self.ending and bool(self.ip) and self.control_port > 0

    @property
    def control_address(self) -> str:
        return f"{_host(self.ip)}:{self.control_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{_host(self.ip)}:{self.metrics_port}/metrics" if self.metrics_port else ""

    @property
    def order(self) -> tuple[int, str]:
        """Highest ordinal first, as a StatefulSet's own updates go; then by name."""
        match = re.search(r"-(\d+)$", self.name)
        return (-int(match[1]) if match else 1, self.name)


def in_order(pods: Iterable[Pod]) -> list[Pod]:
    return sorted(pods, key=lambda pod: pod.order)


def _host(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip
