"""Dockerfiles: linted, from pinned images, with locked packages, for a user without rights."""

import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from tests.docker.compose_project import DOCKER

REPOSITORY = DOCKER.parent
DOCKERFILES = sorted(DOCKER.glob("*/Dockerfile"))
IMAGES = tomllib.loads((DOCKER / "images.toml").read_text())["images"]
SETTINGS = dict(line.split("=", 1) for line in (DOCKER / "images.env").read_text().splitlines() if line[:1] != "#")
named = pytest.mark.parametrize("path", DOCKERFILES, ids=[path.parent.name for path in DOCKERFILES])


def _instructions(path: Path) -> list[tuple[str, str]]:
    """`(INSTRUCTION, arguments)`, with continued lines joined and comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line.strip()]


def test_every_image_has_a_dockerfile_and_a_lock() -> None:
    assert {path.parent.name for path in DOCKERFILES} == set(IMAGES) - {"inprocess"}  # a target of the services'
    for name in (*IMAGES, "build"):
        assert (DOCKER / "locks" / f"{name}.txt").exists()


@named
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


@named
def test_what_hadolint_is_told_to_ignore_is_explained(path: Path) -> None:
    lines = path.read_text().splitlines()
    for above, line in pairwise(lines):
        if "hadolint ignore" in line:
            assert above.startswith("#"), line


@named
def test_base_images_come_from_the_file_of_pins_alone(path: Path) -> None:
    stages = {words.split()[-1] for name, words in _instructions(path) if name == "FROM" and " AS " in words}
    for name, words in _instructions(path):
        if name == "FROM" and (image := words.split()[0]) not in stages:
            variable = re.fullmatch(r"\$\{(\w+)\}", image)
            assert variable is not None, image
            assert variable[1] in SETTINGS


def test_pins_name_a_version_and_a_digest_only_as_registries_write_it() -> None:
    for name, image in SETTINGS.items():
        if name.endswith("_IMAGE"):
            assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?", image), name
            assert "latest" not in image
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert SETTINGS["ANYLOOP_VERSION"] == project["version"]


def test_what_runs_says_its_version_although_no_distribution_is_installed() -> None:
    """The packages lie in images as sources; metrics and traces say this."""
    program = (
        "import importlib.metadata as installed\n"
        "def version(name):\n    raise installed.PackageNotFoundError(name)\n"
        "installed.version = version\n"
        "from anyloop.telemetry import metrics\nprint(metrics.VERSION)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == SETTINGS["ANYLOOP_VERSION"]


@named
def test_the_image_runs_as_a_fixed_user_by_number_from_an_exec_form(path: Path) -> None:
    final = _instructions(path)
    final = final[max(index for index, (name, _) in enumerate(final) if name == "FROM") :]
    assert [words for name, words in final if name == "USER"] == ["10001:10001"]
    (command,) = [words for name, words in final if name == "CMD"]
    assert re.fullmatch(r'\["python", "-m", .*\]', command)  # no shell between the container's end and Python
    (check,) = [words for name, words in final if name == "HEALTHCHECK"]
    assert '"/opt/anyloop/healthcheck.py"' in check
    order = [name for name, _ in final]
    assert (
        order.index("USER") > max(index for index, name in enumerate(order) if name == "RUN") if "RUN" in order else 1
    )


@named
def test_packages_are_installed_by_hash_and_none_but_these(path: Path) -> None:
    installs = [words for name, words in _instructions(path) if name == "RUN" and "install" in words and "pip" in words]
    assert installs
    for command in installs:
        assert {"--require-hashes", "--only-binary"} <= set(command.split())
        assert re.search(r"-r /tmp/\w+\.txt$", command)
    assert not [words for name, words in _instructions(path) if name == "ADD"]
    assert not re.search(r"https?://|curl|wget", path.read_text())


@named
def test_what_is_copied_is_in_the_context_and_in_the_list_of_contents(path: Path) -> None:
    allowed = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for name, words in _instructions(path):
        if name == "COPY" and not words.startswith("--from"):
            for source in words.split()[:-1]:
                assert (REPOSITORY / source).exists(), source
                assert any(source == entry or source.startswith(f"{entry}/") for entry in allowed), source
                copied.add(source)
    assert {source for source in copied if "/" not in source} == set(IMAGES[path.parent.name]["folders"])


def test_nothing_but_sources_gets_into_a_build() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert "**/.env" in rules
    assert "**/__pycache__" in rules
