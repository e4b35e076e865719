"""From every released chart to this one: what Kubernetes never lets change has not changed.

`releases/` holds each version as it was packaged. A real API server judges the same in test_cluster.py.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Chart

from tests.charts.rendering import ALL, CHART, Object, example, render

RELEASES = sorted((Path(__file__).parent / "releases").glob("anyloop-*.tgz"))
NAMES = [path.stem for path in RELEASES]
MUTABLE_OF_STATEFUL_SETS = {
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
}


def immutable(each: Object) -> dict[str, Any]:
    """The fields of an object that an update may not touch, as the API reference of each kind says."""
    spec = each.get("spec", {})
    match each["kind"]:
        case "StatefulSet":
            return {name: value for name, value in spec.items() if name not in MUTABLE_OF_STATEFUL_SETS}
        case "Deployment":
            return {"selector": spec["selector"]}
        case "Job":
            return {"template": spec["template"]}
        case "Service":
            return {"clusterIP": spec.get("clusterIP")}
        case "PersistentVolumeClaim":
            return {name: value for name, value in spec.items() if name != "resources"}
        case "RoleBinding":
            return {"roleRef": each["roleRef"]}
    return {}


def known(release: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Values as that release had them: later ones are not in its schema."""
    with Chart.load(release) as chart:
        return _pruned(values, chart.values)


def _pruned(values: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _pruned(value, there[name]) if isinstance(value, dict) and there[name] else value
        for name, value in values.items()
        if name in there
    }


def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("release", RELEASES, ids=NAMES)
def test_an_upgrade_changes_nothing_that_cannot_change(release: Path, name: str) -> None:
    before, after = by_name(render(known(release, example(name)), release)), by_name(render(example(name)))
    common = before.keys() & after.keys()
    assert len([key for key in common if immutable(before[key])]) > 10
    for key in common:
        assert immutable(before[key]) == immutable(after[key]), key


@pytest.mark.parametrize("release", RELEASES, ids=NAMES)
def test_disks_of_the_old_release_are_found_again(release: Path) -> None:
    """A claim template or a claim of another name would begin with an empty disk, and say nothing."""
    for name in ALL:
        assert disks(render(known(release, example(name)), release)) <= disks(render(example(name)))


def disks(objects: list[Object]) -> set[tuple[str, str]]:
    claims = {("", each["metadata"]["name"]) for each in objects if each["kind"] == "PersistentVolumeClaim"}
    for each in objects:
        for claim in each.get("spec", {}).get("volumeClaimTemplates", []):
            claims.add((each["metadata"]["name"], claim["metadata"]["name"]))
    return claims


def test_there_is_a_release_and_this_chart_is_newer() -> None:
    def numbers(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split("."))

    current = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    assert NAMES
    assert all(numbers(name.removeprefix("anyloop-")) < numbers(current) for name in NAMES)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "serviceName"), "another"),
        (("spec", "selector", "matchLabels", "app.kubernetes.io/name"), "another"),
        (("spec", "volumeClaimTemplates", 0, "spec", "accessModes"), ["ReadWriteMany"]),
    ],
    ids=["serviceName", "selector", "claim template"],
)
def test_a_change_that_is_not_allowed_would_be_found(path: tuple[Any, ...], value: Any) -> None:
    (before,) = [each for key, each in by_name(render()).items() if key == ("StatefulSet", "anyloop-policy")]
    (after,) = [each for key, each in by_name(render()).items() if key == ("StatefulSet", "anyloop-policy")]
    place = after
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert immutable(before) != immutable(after)
