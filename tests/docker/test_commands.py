"""The runbook's commands in a cluster: the pod that is named has the program, its packages, and what commands need."""

import os
import re
import subprocess
import sys

import pytest

from tests.charts.rendering import ROOT, containers, environment, of_kind, pod_specs, rendered
from tests.docker.compose_project import DOCKER
from tests.docker.imports import OURS
from tests.docker.test_locks import DISTRIBUTIONS, IMAGES, _brings, _locked

RUNBOOK = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
LINES = re.findall(r"`kubectl exec (\S+) -- anyloop ([^`]+)`", RUNBOOK)
# Which commands each line of the table stands for: its first cell.
TABLE = [
    (set(re.findall(r"`([a-z-]+(?: --[a-z-]+)?)`", commands)), target)
    for commands, target in re.findall(r"^\| (.+?) \| `kubectl exec (\S+) --", RUNBOOK, re.MULTILINE)
]
PODS = {target: target.rpartition("/")[2].removeprefix("anyloop-").removesuffix("-0") for target, _ in LINES}
# What is not installed in the image cannot be imported.
PROGRAM = """
import sys
missing = set({missing!r})
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError("not in the image: " + name, name=name)
sys.meta_path.insert(0, Missing())
sys.argv = ["anyloop", *{words!r}, "--help"]
exec(compile(open({launcher!r}).read(), "anyloop", "exec"))
"""


def _image(component: str) -> str:
    (container,) = pod_specs(rendered("defaults"))[component]["containers"]
    return str(container["image"]).partition("/")[2].partition(":")[0]


def test_there_are_lines_to_look_at() -> None:
    assert {"gateway", "gate", "controller"} == set(PODS.values())
    assert len(TABLE) >= 3


@pytest.mark.parametrize(("target", "command"), LINES, ids=[f"{target}: {command}" for target, command in LINES])
def test_the_pod_is_one_of_the_chart_and_its_image_has_the_program(target: str, command: str) -> None:
    kind = {"deploy": "Deployment"}.get(target.partition("/")[0], "StatefulSet")
    names = {each["metadata"]["name"] for each in of_kind(rendered("defaults"), kind)}
    assert target.rpartition("/")[2].removesuffix("-0") in names
    dockerfile = (DOCKER / _image(PODS[target]) / "Dockerfile").read_text()
    assert "COPY docker/anyloop /opt/anyloop/bin/\n" in dockerfile
    assert re.search(r"^ENV PATH=\S*:/opt/anyloop/bin:", dockerfile, re.MULTILINE)
    launcher = DOCKER / "anyloop"
    assert launcher.read_text().startswith("#!/opt/venv/bin/python\n")
    assert os.access(launcher, os.X_OK)


@pytest.mark.parametrize(("target", "command"), LINES, ids=[f"{target}: {command}" for target, command in LINES])
def test_the_command_is_there_with_the_images_packages_alone(target: str, command: str) -> None:
    image = _image(PODS[target])
    locked = _locked(DOCKER / "locks" / f"{image}.txt")
    absent = {name for name in DISTRIBUTIONS if not _brings(locked, name)} - set(sys.stdlib_module_names)
    absent = (absent | OURS) - set(IMAGES["images"][image]["folders"]) - {"__pycache__"}
    words = [word for word in command.split() if not word.startswith("-")][:2]
    program = PROGRAM.format(missing=sorted(absent), words=words, launcher=str(DOCKER / "anyloop"))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PATH": os.defpath, "HOME": "/nonexistent", "COLUMNS": "200", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"anyloop {' '.join(words)}" in re.sub(r"\s+", " ", done.stdout)


def test_every_command_of_the_runbook_has_a_pod_or_a_reason() -> None:
    runbook = RUNBOOK.partition("\n## Runbook\n")[2].partition("\n## ")[0]
    named = {match[1] for match in re.finditer(r"`anyloop ([a-z]+)", runbook)}
    placed = {command.split()[0] for commands, _ in TABLE for command in commands}
    assert named - placed == {"topics"}  # by values of the chart: the bootstrap Job applies them


@pytest.mark.parametrize(("commands", "target"), TABLE, ids=[target for _, target in TABLE])
def test_the_pod_has_what_its_commands_need(commands: set[str], target: str) -> None:
    objects, component = rendered("defaults"), PODS[target]
    given, spec = environment(objects, component), pod_specs(objects)[component]
    mounts = {mount["name"]: mount for container in containers(spec) for mount in container["volumeMounts"]}
    first = {command.split()[0] for command in commands}
    if first & {"status", "log", "audit", "checkpoints", "replay"}:
        assert "ANYLOOP_LOG_URL" in given
    if "checkpoints" in first:
        assert given["ANYLOOP_REGISTRY_DIR"] == mounts["registry"]["mountPath"]
        assert not mounts["registry"].get("readOnly")
    if "status" in first:
        # Those that serve, not the learner's pool; that they may be reached is tests/charts/test_network.py's.
        dialled = {name: value for name, value in given.items() if name.endswith("_TARGET")}
        hosts = {re.sub(r"^dns:///anyloop-|\.demo.*", "", value) for value in dialled.values()}
        assert hosts == {"policy", "critique", "decoders"}
    if "rollouts" in first:
        assert spec["automountServiceAccountToken"] is True
