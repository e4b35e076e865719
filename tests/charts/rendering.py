"""The chart as a person would render it, for the tests beside this file."""

import copy
import functools
import json
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "anyloop"
EXAMPLES = {path.stem: path for path in sorted((CHART / "examples").glob("*.yaml"))}
RELEASE, NAMESPACE = "anyloop", "demo"

# Everything that can be switched on beside the examples, so that no template goes untested.
EVERYTHING: dict[str, Any] = {
    "auth": {"existingSecret": "keys"},
    "tls": {"enabled": True, "certManager": {"enabled": True, "issuerRef": {"name": "ca"}}},
    "media": {"url": "s3://media", "s3": {"endpoint": "https://objects:9000", "existingSecret": "objects"}},
    "model": {"path": "/var/lib/anyloop-registry/.base", "source": "s3://models/base"},
    "gateway": {
        "edgeTlsSecret": "edge",
        "ingress": {"enabled": True, "host": "loop.example.com", "tlsSecret": "web"},
        "autoscaling": {"kind": "hpa"},
    },
    "policy": {
        "gpu": {"count": 1},
        "autoscaling": {"kind": "keda", "cpuPercent": 80, "prometheusUrl": "http://prometheus:9090"},
    },
    "decoders": {"autoscaling": {"kind": "hpa"}},
    "trainer": {"nodes": 2, "processesPerNode": 2, "home": {"accessModes": ["ReadWriteMany"]}},
    "rollouts": {"prometheus": {"url": "http://prometheus:9090"}},
    "monitoring": {"serviceMonitor": {"enabled": True}, "rules": {"enabled": True}, "dashboards": {"enabled": True}},
    "tracing": {"endpoint": "http://collector:4317"},
    "tests": {"apiKeySecret": "test-key"},
}

Object = dict[str, Any]


def example(name: str) -> dict[str, Any]:
    """Values of `examples/NAME.yaml`; `defaults` and `everything` too."""
    if name == "defaults":
        return {}
    if name == "everything":
        return copy.deepcopy(EVERYTHING)
    return dict(yaml.safe_load(EXAMPLES[name].read_text()))


ALL = ("defaults", "everything", *EXAMPLES)


def render(values: dict[str, Any] | None = None, chart: Path = CHART, release: str = RELEASE) -> list[Object]:
    """The objects of a release, as Helm would send them. A fresh chart each time: a handle remembers."""
    with Chart.load(chart) as loaded:
        manifests = loaded.render(values or {}, name=release, namespace=NAMESPACE)
    texts = (text for path, text in sorted(manifests.items()) if not path.endswith("NOTES.txt"))
    return [each for text in texts for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each]


@functools.cache
def _rendered(name: str) -> str:
    return json.dumps(render(example(name)))


def rendered(name: str) -> list[Object]:
    """`render(example(name))`, made once."""
    return list(json.loads(_rendered(name)))


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def named(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def pod_specs(objects: list[Object]) -> dict[str, Object]:
    """Component -> the spec of its pods."""
    found: dict[str, Object] = {}
    for each in of_kind(objects, "Deployment", "StatefulSet", "Job", "Pod"):
        template = each if each["kind"] == "Pod" else each["spec"]["template"]
        found[template["metadata"]["labels"]["app.kubernetes.io/component"]] = template["spec"]
    return found


def containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def environment(objects: list[Object], component: str) -> dict[str, str]:
    """What the containers of a component find in their environment; secrets as `secret:NAME/KEY`."""
    spec = pod_specs(objects)[component]
    found: dict[str, str] = {}
    for container in containers(spec):
        for source in container.get("envFrom", []):
            found |= named(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            found[variable["name"]] = (
                f"secret:{reference['name']}/{reference['key']}" if reference else (variable.get("value", ""))
            )
    return found
