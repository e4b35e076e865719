"""The packages of each image: locked by hash, as pyproject.toml asks, and all that its programs import."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.docker.compose_project import DOCKER
from tests.docker.imports import reachable

IMAGES = tomllib.loads((DOCKER / "images.toml").read_text())
PROJECT = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())["project"]
LOCKS = sorted((DOCKER / "locks").glob("*.txt"))
# google.* is a folder that several distributions share.
DISTRIBUTIONS = {**importlib.metadata.packages_distributions(), "google": ["protobuf"]}
each_image = pytest.mark.parametrize("image", sorted(IMAGES["images"]))


def _locked(path: Path) -> dict[str, str]:
    return {
        canonicalize_name(line.split("==")[0].partition("[")[0]): re.split(r"[ ;\\]", line.split("==")[1])[0]
        for line in path.read_text().splitlines()
        if "==" in line and not line.startswith((" ", "#"))
    }


def _asked() -> dict[str, Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({**default_environment(), "extra": ""}):
            found.setdefault(canonicalize_name(requirement.name), requirement)
    return found


@pytest.mark.parametrize("path", LOCKS, ids=[path.stem for path in LOCKS])
def test_every_package_has_hashes_and_no_address_of_an_index(path: Path) -> None:
    text = path.read_text()
    blocks = re.split(r"\n(?=[a-z0-9])", text.partition("lock.py\n")[2])
    assert len(blocks) == len(_locked(path)) > 0
    for block in blocks:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block.splitlines()[0]
    assert not re.search(r"https?:|--index|--find-links|git\+", text)


@each_image
def test_the_lock_holds_what_the_list_names_in_versions_that_pyproject_allows(image: str) -> None:
    locked, asked = _locked(DOCKER / "locks" / f"{image}.txt"), _asked()
    for part in IMAGES["images"][image]["lists"]:
        for package in IMAGES["lists"][part]:
            requirement = Requirement(package)
            name = canonicalize_name(requirement.name)
            assert name in locked, f"run `python docker/lock.py {image}`"
            assert requirement.specifier.contains(locked[name])
    for name, version in locked.items():
        if name in asked:
            allowed = asked[name].specifier
            assert allowed.contains(version), f"{name} {version}, not {allowed}: python docker/lock.py {image}"


@each_image
def test_programs_find_everything_they_can_import(image: str) -> None:
    contents = IMAGES["images"][image]
    locked = _locked(DOCKER / "locks" / f"{image}.txt")
    others: set[str] = set()
    ours: set[str] = set()
    for program in contents["programs"]:
        found = reachable(program)
        others |= found[0]
        ours |= found[1]
    assert {"anyloop", program.partition(".")[0]} <= ours
    assert ours <= set(contents["folders"])
    without = set(contents["without"])
    missing = {name for name in others - without if not _brings(locked, name)}
    assert missing == set(), f"add their packages to docker/images.toml, then `python docker/lock.py {image}`"
    assert without <= others, "docker/images.toml leaves out what nothing imports"
    assert not {name for name in without if _brings(locked, name)}, "and what is there all the same"


def _brings(locked: dict[str, str], module: str) -> bool:
    return any(canonicalize_name(name) in locked for name in DISTRIBUTIONS.get(module, [module]))
