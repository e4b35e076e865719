"""A real etcd and a real kube-apiserver on this machine, without nodes: objects, watches, admission, RBAC, leases.

What is not here: no kubelet, no scheduler and no controller manager, so no Deployment makes pods, a namespace that is
deleted never goes, and a Service routes nothing. Tests register pods themselves.
"""

import json
import secrets
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.k8s.controlplane.build import ControlPlaneMissing, programs
from tests.k8s.controlplane.program import Program, free_ports

_START_SECONDS = 60.0


class ControlPlane:
    """`with ControlPlane(folder) as plane: plane.kubeconfig`. Everything lies in `folder`; the ports are its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder).absolute()
        self.token = secrets.token_hex(16)
        etcd, peer, self._port = free_ports(3)
        built = programs()
        self._certificates = self._folder / "certificates"
        self.etcd = Program(self._etcd_command(built, etcd, peer), self._folder / "etcd.log")
        self.apiserver = Program(self._apiserver_command(built, etcd), self._folder / "apiserver.log")

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    @property
    def certificate(self) -> Path:
        """The authority of the API server's certificate."""
        return self._certificates / "apiserver.crt"

    @property
    def kubeconfig(self) -> Path:
        """Of a cluster administrator."""
        return self.write_kubeconfig("admin", self.token)

    def write_kubeconfig(self, user: str, token: str, namespace: str = "default") -> Path:
        """A kubeconfig file for a bearer token. JSON is YAML."""
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {"name": "test", "cluster": {"server": self.url, "certificate-authority": str(self.certificate)}}
            ],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user, "namespace": namespace}}],
        }
        path = self._folder / f"{user}.kubeconfig"
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    def service_account_token(self, namespace: str, name: str) -> str:
        """Of a service account that exists, for an hour."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600},
        }
        return str(self.request("POST", path, request)["status"]["token"])

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """Acts as a service account: what RBAC does not grant it is refused."""
        return self.write_kubeconfig(f"{namespace}.{name}", self.service_account_token(namespace, name), namespace)

    def service_account(self, namespace: str, name: str) -> Callable[..., Any]:
        """`request`, as a service account."""
        return partial(self.request, token=self.service_account_token(namespace, name))

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        *,
        token: str = "",
        accept: str = "application/json",
    ) -> Any:
        """One call, as the administrator without a `token`; the JSON of the answer. Raises urllib.error.HTTPError."""
        request = urllib.request.Request(
            f"{self.url}{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={
                "Authorization": f"Bearer {token or self.token}",
                "Content-Type": content_type,
                "Accept": accept,
            },
        )
        context = ssl.create_default_context(cafile=str(self.certificate))
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            with error:  # or its socket is found open by the garbage collector
                error.add_note(error.read().decode(errors="replace"))
            raise
        return json.loads(content) if content[:1] in (b"{", b"[") else content.decode()

    def start(self) -> Self:
        """Returns when the API server is ready. Raises ControlPlaneMissing with the end of its log when it is not."""
        self._prepare()
        self.etcd.start()
        self.apiserver.start()
        self.await_ready()
        return self

    def restart_apiserver(self, down_seconds: float = 0.0) -> None:
        """`kill -9`, some time without it, and another one on the same port and the same data."""
        self.apiserver.kill()
        time.sleep(down_seconds)
        self.apiserver.start()
        self.await_ready()

    def await_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            for name, program in (("etcd", self.etcd), ("kube-apiserver", self.apiserver)):
                if not program.running:
                    raise ControlPlaneMissing(f"{name} ended at its start:\n{program.tail}")
            try:
                if self.certificate.exists() and self.request("GET", "/readyz") == "ok":
                    return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.1)
        raise ControlPlaneMissing(f"kube-apiserver is not ready in {_START_SECONDS:.0f} s:\n{self.apiserver.tail}")

    def stop(self) -> None:
        self.apiserver.kill()  # a graceful end waits for its watches, and there is nothing to lose
        self.etcd.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "tokens.csv").write_text(f'{self.token},admin,admin,"system:masters"\n', encoding="utf-8")
        key = self._folder / "service-accounts.key"
        if key.exists():
            return
        openssl = shutil.which("openssl")
        if openssl is None:
            raise ControlPlaneMissing("the API server signs service account tokens with an RSA key: install openssl")
        subprocess.run([openssl, "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)

    def _etcd_command(self, built: Path, client: int, peer: int) -> list[str]:
        return [
            str(built / "etcd"),
            f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{client}",
            f"--advertise-client-urls=http://127.0.0.1:{client}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",  # a test's data survive a killed process, not a power cut
            "--log-level=error",
        ]

    def _apiserver_command(self, built: Path, etcd: int) -> list[str]:
        key = self._folder / "service-accounts.key"
        return [
            str(built / "apiserver"),
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--cert-dir={self._certificates}",
            f"--token-auth-file={self._folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--endpoint-reconciler-type=none",  # it would publish the loopback address, which it refuses
            "--disable-admission-plugins=ServiceAccount",  # no controller manager makes the default accounts
            "--allow-privileged=false",
            "--v=0",
        ]
