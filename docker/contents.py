"""What docker/images.toml says of an image, joined with the versions of pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent

_NAME = re.compile(r"[A-Za-z0-9._-]+(\[[a-z0-9,-]+\])?")


class ContentsError(ValueError):
    """docker/images.toml names what there is not."""


@dataclass(frozen=True)
class Image:
    """One image: its Python, its requirements as pip reads them, the folders copied into it and what is started."""

    name: str
    python: str
    requirements: tuple[str, ...]
    folders: tuple[str, ...]
    programs: tuple[str, ...]
    without: tuple[str, ...]

    @property
    def lock(self) -> Path:
        return HERE / "locks" / f"{self.name}.txt"


def images() -> dict[str, Image]:
    """Every image by its name. Raises ContentsError for a package without a version."""
    contents = tomllib.loads((HERE / "images.toml").read_text())
    versions = _versions()
    return {name: _image(name, entry, contents["lists"], versions) for name, entry in contents["images"].items()}


def _image(name: str, entry: dict[str, Any], lists: dict[str, list[str]], versions: dict[str, str]) -> Image:
    requirements: dict[str, None] = {}
    for part in entry["lists"]:
        if part not in lists:
            raise ContentsError(f"image {name} has a list {part!r}, which docker/images.toml does not define")
        for package in lists[part]:
            requirements[package if "==" in package else _versioned(package, versions)] = None
    return Image(
        name,
        entry["python"],
        tuple(requirements),
        tuple(entry["folders"]),
        tuple(entry["programs"]),
        tuple(entry["without"]),
    )


def _versioned(package: str, versions: dict[str, str]) -> str:
    if package not in versions:
        raise ContentsError(f"{package} has no version: name it in pyproject.toml as here, or give one in images.toml")
    return package + versions[package]


def _versions() -> dict[str, str]:
    """`name[extras]` -> what pyproject.toml asks of it, markers included."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    found: dict[str, str] = {}
    for line in lines:
        name = _NAME.match(line)
        assert name is not None, line
        found.setdefault(name[0], line[name.end() :])
    return found
