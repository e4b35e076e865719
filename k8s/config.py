"""Settings of the controller: environment variables with the prefix `ANYLOOP_CONTROLLER_`.

    python -m k8s

*Which cluster*: `ANYLOOP_CONTROLLER_KUBECONFIG` (a file; else `KUBECONFIG`, else the pod's service account, else
~/.kube/config), `ANYLOOP_CONTROLLER_CONTEXT` (a context of it).
*Which loop*: the settings that all processes share (anyloop/config.py): `ANYLOOP_LOG_URL` (the log whose APPROVED
events it rolls out and where it announces), `ANYLOOP_TLS_*` (towards the replicas' control ports, whose certificates
name `ANYLOOP_TLS_SERVER_NAME`), `ANYLOOP_LOG_LEVEL`, `ANYLOOP_BIND`, `ANYLOOP_METRICS_PORT` and `ANYLOOP_HEALTH_PORT`
(of the controller itself: SERVING whether it holds the Lease or waits for it).
*Which pods*: those that a PolicyRollout selects and that match `ANYLOOP_CONTROLLER_POD_SELECTOR`. A pod takes part with
a `status.podIP`, a container port named `control` (gRPC ControlService), the condition Ready, and, for analysis, a
container port named `metrics` (HTTP, /metrics).

*Which PolicyRollouts*: those that match `ANYLOOP_CONTROLLER_ROLLOUT_SELECTOR`: two controllers with logs of their own
in one namespace must not act on each other's.

Several controllers may run: the holder of the Lease acts, the others wait.
"""

import os
import socket
from pathlib import Path

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ControllerSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="ANYLOOP_CONTROLLER_", env_file=".env", extra="ignore")

    kubeconfig: Path | None = Field(None, description="Empty: KUBECONFIG, the pod's service account, ~/.kube/config")
    context: str = Field("", description="A context of the kubeconfig; empty is its current one")
    namespace: str = Field("", description="Where PolicyRollouts and replicas are; empty is its own, * is all of them")
    pod_selector: str = Field("app.kubernetes.io/name=anyloop", description="Pods that are watched at all")
    rollout_selector: str = Field("", description="PolicyRollouts that are watched at all; empty is every one")

    # Leader election
    lease_name: str = Field("anyloop-controller", description="The Lease whose holder acts")
    lease_namespace: str = Field("", description="Empty is the controller's own namespace")
    identity: str = Field("", description="Of this process in the Lease; empty is host name and process id")
    lease_seconds: float = Field(15.0, gt=0, description="A holder that has not renewed for so long has lost the Lease")
    renew_seconds: float = Field(10.0, gt=0, description="A holder that could not renew for so long stops acting")
    retry_seconds: float = Field(2.0, gt=0, description="Between two attempts to get or renew the Lease")

    # Pace
    workers: int = Field(4, ge=1, description="PolicyRollouts looked at together")
    observe_seconds: float = Field(5.0, gt=0, description="Age at which a replica's status is asked again in a rollout")
    idle_seconds: float = Field(30.0, gt=0, description="The same outside of a rollout, and between two looks")
    concurrency: int = Field(64, ge=1, description="Questions to replicas at the same time, and as many changes")
    swap_seconds: float = Field(180.0, gt=0, description="Longest that a replica may take to change its weights")
    call_seconds: float = Field(3.0, gt=0, description="Longest that any other call to a replica may take")
    status_seconds: float = Field(1.0, ge=0, description="Between two writes of a status in which only counts changed")
    log_poll_seconds: float = Field(0.5, gt=0, description="Between two looks at the log's announcements")
    deletion_seconds: float = Field(120.0, gt=0, description="Longest that a deletion waits for replicas to go back")

    # Analysis
    prometheus_url: str = Field("", description="Of metrics that name no address")
    prometheus_token_file: Path | None = Field(None, description="Bearer token, sent to prometheus_url only")
    scraped_replicas: int = Field(50, ge=1, description="Replicas of each kind whose metrics a measurement reads")

    @model_validator(mode="after")
    def _lease_times_fit(self) -> "ControllerSettings":
        if not self.retry_seconds < self.renew_seconds < self.lease_seconds:
            raise ValueError(
                "ANYLOOP_CONTROLLER_RETRY_SECONDS < RENEW_SECONDS < LEASE_SECONDS must hold, or two controllers could "
                f"act at once: they are {self.retry_seconds:g}, {self.renew_seconds:g} and {self.lease_seconds:g}"
            )
        return self

    @property
    def holder(self) -> str:
        return self.identity or f"{socket.gethostname()}-{os.getpid()}"


def service_account_namespace() -> str:
    """The namespace of the pod that this process runs in; empty outside of a cluster."""
    try:
        return _SERVICE_ACCOUNT_NAMESPACE.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
