#!/usr/bin/env python3
"""`python docker/sbom.py FOLDER`: a CycloneDX 1.6 bill of materials for each image, from its lock file and its base.

The same inputs give the same bytes. Packages of the base image's system are not in it: they are the base image's own.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

from contents import HERE, REPOSITORY, Image, images

_PACKAGE = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(\[[^\]]*\])?==(?P<version>[^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def bill(image: Image, version: str, base: str) -> dict[str, Any]:
    """The document of one image; `base` is its base image as docker/images.env names it."""
    name, _, digest = base.partition("@")
    repository, _, tag = name.rpartition(":")
    container: dict[str, Any] = {"type": "container", "bom-ref": "base", "name": repository, "version": tag}
    if digest:
        container["hashes"] = [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]
    packages = _packages(image.lock.read_text())
    product = {
        "type": "container",
        "bom-ref": "image",
        "name": f"anyloop/{image.name}",
        "version": version,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": product},
        "components": [container, *packages],
        "dependencies": [{"ref": "image", "dependsOn": ["base", *(package["bom-ref"] for package in packages)]}],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(document, sort_keys=True))
    return {**document, "serialNumber": f"urn:uuid:{serial}"}


def _packages(lock: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for block in re.split(r"\n(?=\S)", lock):
        if package := _PACKAGE.match(block):
            address = f"pkg:pypi/{package['name'].lower().replace('_', '-')}@{quote(package['version'])}"
            # A package has many files (wheels for each platform); which of them is installed the image decides.
            files = [
                {"type": "distribution", "url": address, "hashes": [{"alg": "SHA-256", "content": content}]}
                for content in _HASH.findall(block)
            ]
            component = {"type": "library", "bom-ref": address, "name": package["name"], "version": package["version"]}
            found.append({**component, "purl": address, "externalReferences": files})
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python docker/sbom.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the documents go, one <image>.cdx.json each")
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = (HERE / "images.env").read_text().splitlines()
    pins = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    for name, image in images().items():
        document = bill(image, version, pins["TRITON_IMAGE" if name == "triton" else "PYTHON_IMAGE"])
        (folder / f"{name}.cdx.json").write_text(json.dumps(document, indent=2) + "\n")
        print(f"{name}: {len(document['components'])} components")
    return 0


if __name__ == "__main__":
    sys.exit(main())
