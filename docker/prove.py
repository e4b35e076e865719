#!/usr/bin/env python3
"""`python docker/prove.py WORK [--image NAME ...]`: builds the images on stand-ins for their bases, and runs them.

For machines without a container engine or a registry. As root, with Debian's `buildah`, `crun` and `debootstrap`; the
last commit (`git archive`), one image after another, each started as a cluster would: read-only, as its user, without
capabilities. WORK takes up to 12 GB for an image with torch; `--keep` keeps the images for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import yaml
from container import Container
from standins import Buildah, python_image, triton_image

REPOSITORY = Path(__file__).resolve().parent.parent
TARGETS = {name: name for name in ("gateway", "controller", "services", "triton", "trainer")} | {
    "inprocess": "services"
}
PORTS = {
    "ANYLOOP_BIND": "127.0.0.1",
    "ANYLOOP_METRICS_PORT": "0",
    "ANYLOOP_GATEWAY_PORT": "28080",
    "ANYLOOP_EDGE_GRPC_PORT": "28081",
    "ANYLOOP_TRITON_URL": "127.0.0.1:28001",
    "ANYLOOP_POLICY_PORT": "28051",
    "ANYLOOP_POLICY_TARGET": "127.0.0.1:28051",
    "ANYLOOP_POLICY_CONTROL_PORT": "28061",
    "ANYLOOP_POLICY_CONTROL_TARGET": "127.0.0.1:28061",
    "ANYLOOP_DECODER_PORT": "28053",
    "ANYLOOP_DECODER_TARGET": "127.0.0.1:28053",
    "ANYLOOP_LOG_URL": "sqlite:////var/lib/anyloop-registry/log.db",
    "ANYLOOP_MEDIA_URL": "file:///var/lib/anyloop-media",
}
_WRITES = (
    "for place in / /opt/anyloop /opt/venv /etc /usr; do touch $place/x 2>/dev/null && echo wrote $place; done; "
    "for place in /tmp /var/lib/anyloop; do touch $place/x || echo cannot write $place; done; "
    "id -u; grep -c '^Cap.*: *[^0 \t]' /proc/1/status; tr '\\0' ' ' < /proc/1/cmdline"
)


class Proof:
    """Builds and starts images of one work folder."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._buildah = Buildah(work)
        self._context = work / "context"

    def checkout(self) -> None:
        """The last commit: a working tree that others edit would prove nothing."""
        shutil.rmtree(self._context, ignore_errors=True)
        self._context.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(self._context)], input=archive, check=True)

    def folder(self, name: str) -> Path:
        folder = self._work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def built(self, name: str) -> bool:
        return self._buildah.has(_tag(name))

    def build(self, name: str) -> None:
        folder = TARGETS[name]
        began = time.monotonic()
        if folder == "triton":
            base = ("TRITON_IMAGE", triton_image(self._buildah, self._work))
        else:
            base = ("PYTHON_IMAGE", python_image(self._buildah, self._work))
        target = ["--target", name] if folder == "services" else []
        command = ["bud", "--isolation", "chroot", "--pull-never", "--format", "docker", "--quiet"]
        command += ["--build-arg", "=".join(base), "--file", f"docker/{folder}/Dockerfile", *target]
        self._buildah(*command, "--tag", _tag(name), str(self._context))
        size = self._buildah("images", "--format", "{{.Size}}", _tag(name)).split("\n")[0]
        less = self._buildah("images", "--format", "{{.Size}}", base[1]).split("\n")[0]
        _say(
            name, f"every step of its Dockerfile ran, in {time.monotonic() - began:.0f} s: {size}, {less} the stand-in"
        )

    def remove(self, name: str) -> None:
        self._buildah("rmi", "--force", _tag(name))
        self._buildah("rmi", "--prune")

    def start(self, image: str, name: str, *command: str, **environment: str) -> Container:
        places = {"/var/lib/anyloop": name, "/var/lib/anyloop-registry": "registry", "/var/lib/anyloop-media": "media"}
        volumes = {place: self._work / "volumes" / folder for place, folder in places.items()}
        return Container(
            self._buildah, self._work / "containers", _tag(image), name, command, {**PORTS, **environment}, volumes
        )


def gateway(proof: Proof) -> None:
    with proof.start("gateway", "gateway") as running:
        _wait(running, "http", "28080", "/health")
        _confined(running)
        listed = running.execute("anyloop", "topics", "list", "--json")
        _expect(listed.returncode == 0, f"anyloop topics list: {listed.stderr}")
        _stops(running)


def controller(proof: Proof) -> None:
    """Against a real API server, where `python -m tests.k8s.controlplane` has built one: it takes the lease."""
    sys.path.insert(0, str(REPOSITORY))
    from tests.k8s.controlplane.cluster import ControlPlane

    folder = proof.folder("cluster")
    with ControlPlane(folder) as plane:
        crd = json.loads(json.dumps(yaml.safe_load((REPOSITORY / "k8s/crds/policyrollouts.yaml").read_text())))
        plane.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        shared = proof.folder("volumes") / "controller"
        shared.mkdir(parents=True, exist_ok=True)
        (shared / "ca.crt").write_bytes(plane.certificate.read_bytes())
        home = "/var/lib/anyloop"
        (shared / "kubeconfig").write_text(
            plane.kubeconfig.read_text().replace(str(plane.certificate), f"{home}/ca.crt")
        )
        for name in ("ca.crt", "kubeconfig"):
            (shared / name).chmod(0o644)
        environment = {
            "ANYLOOP_CONTROLLER_KUBECONFIG": f"{home}/kubeconfig",
            "ANYLOOP_CONTROLLER_NAMESPACE": "default",
            "ANYLOOP_CONTROLLER_LEASE_NAMESPACE": "default",
            "ANYLOOP_HEALTH_PORT": "28188",
        }
        with proof.start("controller", "controller", **environment) as running:
            _wait(running, "grpc", "28188")
            _confined(running)
            until = time.monotonic() + 30
            while not (
                leases := plane.request("GET", "/apis/coordination.k8s.io/v1/namespaces/default/leases")["items"]
            ):
                _expect(time.monotonic() < until, f"the controller takes no lease:\n{running.log()[-2000:]}")
                time.sleep(0.5)
            _say("controller", f"holds the lease {leases[0]['metadata']['name']} of a real API server")
            _stops(running)


def services(proof: Proof) -> None:
    """Bootstrap, and a decoder service that serves as soon as Triton answers: without torch in the image."""
    _bootstrap(proof, "services")
    with proof.start(
        "services", "decoders", "python", "-m", "services.decoders", ANYLOOP_HEALTH_PORT="28186"
    ) as running:
        time.sleep(3)
        _confined(running)
        torch = running.execute("python", "-c", "import torch")
        _expect("No module named 'torch'" in torch.stderr, "the image holds torch")
        _stops(running)


def inprocess(proof: Proof) -> None:
    _bootstrap(proof, "inprocess")
    with proof.start("inprocess", "policy", "python", "-m", "services.policy", ANYLOOP_HEALTH_PORT="28187") as running:
        _wait(running, "grpc", "28187")
        _confined(running)
        _stops(running)


def triton(proof: Proof) -> None:
    """The way of one request, with `services` and `gateway` when these were built: REST to Triton and back."""
    models = [
        word for name in ("policy", "decoder_image", "decoder_audio", "decoder_video") for word in ("--model", name)
    ]
    ports = ["--http-port", "28000", "--grpc-port", "28001", "--metrics-port", "28002"]
    with proof.start("triton", "triton", "python", "-m", "services.triton", *ports, *models) as server:
        _wait(server, "http", "28000", "/v2/health/ready")
        _confined(server)
        if all(proof.built(name) for name in ("services", "gateway")):
            _bootstrap(proof, "services")
            _one_answer(proof)
        _stops(server)


def trainer(proof: Proof) -> None:
    _bootstrap(proof, "trainer")
    with proof.start("trainer", "trainer", ANYLOOP_METRICS_PORT="28190") as running:
        _wait(running, "http", "28190", "/metrics")
        _confined(running)
        speed = running.execute(
            "python", "-c", "import deepspeed, torch; print(deepspeed.__version__, torch.__version__)"
        )
        _expect(speed.returncode == 0, speed.stderr)
        _say("trainer", f"deepspeed and torch: {speed.stdout.split(chr(10))[-2]}")
        once = running.execute("sh", "-c", "ANYLOOP_HOME=/tmp/other ANYLOOP_METRICS_PORT=0 python -m trainer --once")
        _expect(once.returncode == 3, once.stdout + once.stderr)
        _say("trainer", "reads the log, and finds nothing to learn from")
        _stops(running)


CHECKS: dict[str, Callable[[Proof], None]] = {
    "gateway": gateway,
    "controller": controller,
    "services": services,
    "triton": triton,
    "trainer": trainer,
    "inprocess": inprocess,
}


def _bootstrap(proof: Proof, image: str) -> None:
    with proof.start(image, "bootstrap", "python", "-m", "anyloop.bootstrap") as running:
        _expect(running.wait(60) == 0, f"bootstrap: {running.log()}")
    _say(image, "topics and base checkpoints are made by it")


def _one_answer(proof: Proof) -> None:
    decoders = ("python", "-m", "services.decoders")
    policy = ("python", "-m", "services.policy")
    with (
        proof.start("services", "decoders", *decoders, ANYLOOP_HEALTH_PORT="28186") as first,
        proof.start("services", "policy", *policy, ANYLOOP_HEALTH_PORT="28187") as second,
        proof.start("gateway", "gateway") as third,
    ):
        _wait(first, "grpc", "28186")
        _wait(second, "grpc", "28187")
        _wait(third, "http", "28080", "/ready")
        asked = b'{"model": "policy", "messages": [{"role": "user", "content": "a small red circle"}]}'
        request = urllib.request.Request(
            "http://127.0.0.1:28080/v1/chat/completions", asked, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            _say("triton", f"gateway, services and Triton in containers: {answer.status} {answer.read()[-300:]!r}")
        for running in (third, second, first):
            _stops(running)


def _wait(running: Container, *check: str) -> None:
    took = running.wait_healthy(120, ["python", "/opt/anyloop/healthcheck.py", *check])
    _say(running.name, f"healthy after {took:.1f} s")


def _confined(running: Container) -> None:
    *problems, user, capabilities, command = running.execute("sh", "-c", _WRITES).stdout.strip().splitlines()
    _expect(problems == [], f"{running.name}: {problems}")
    _expect(user == str(running.user) == "10001", f"{running.name} runs as {user}")
    _expect(capabilities == "0", f"{running.name} has capabilities")
    _say(running.name, f"user {user}, no capabilities, root read-only, first process: {command.strip()[:60]}")


def _stops(running: Container) -> None:
    status, took = running.stop()
    _expect(status == 0, f"{running.name} ended with {status}:\n{running.log()[-2000:]}")
    _say(running.name, f"ends by SIGTERM with status 0 after {took:.1f} s")


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _tag(name: str) -> str:
    return f"localhost/anyloop/{name}"


def _say(name: str, message: str) -> None:
    print(f"{name:10} {message}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python docker/prove.py", description=__doc__)
    parser.add_argument("work", type=Path, help="folder for base systems, images and volumes")
    parser.add_argument("--image", action="append", choices=TARGETS, help="only these (default: all, one by one)")
    parser.add_argument("--keep", action="store_true", help="keep the images")
    options = parser.parse_args(arguments)
    missing = [tool for tool in ("buildah", "crun", "debootstrap") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        print(f"prove: needs root, and apt-get install {' '.join(missing or ['nothing more'])}", file=sys.stderr)
        return 2
    proof = Proof(options.work.absolute())
    proof.checkout()
    failed = []
    for name in options.image or CHECKS:
        try:
            proof.build(name)
            CHECKS[name](proof)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            failed.append(name)
            _say(name, f"FAILED: {error}")
        finally:
            if not options.keep and name not in ("services", "gateway"):  # these two are needed for Triton's answer
                proof.remove(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
