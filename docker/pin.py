#!/usr/bin/env python3
"""`python docker/pin.py [--check]`: asks the registries for the digests of docker/images.env and writes them there.

Uses the first of `crane`, `skopeo` and `docker buildx` that is installed, with its logins and mirrors. When one image
cannot be asked for, nothing is written: a digest that no registry has said is worse than none.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FILE = Path(__file__).resolve().parent / "images.env"
TOOLS = {
    "crane": ("crane", "digest", "{image}"),
    "skopeo": ("skopeo", "inspect", "--format", "{{{{.Digest}}}}", "docker://{image}"),
    "docker": ("docker", "buildx", "imagetools", "inspect", "--format", "{{{{.Manifest.Digest}}}}", "{image}"),
}
_LINE = re.compile(r"^(?P<name>\w+_IMAGE)=(?P<image>[^@\s]+)(@(?P<digest>sha256:[0-9a-f]{64}))?$")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class PinError(RuntimeError):
    """A digest could not be had."""


def pinned(text: str, digest_of: Callable[[str], str]) -> str:
    """`text` with every image named by tag and digest. Raises PinError."""
    lines = []
    for line in text.splitlines():
        found = _LINE.match(line)
        lines.append(f"{found['name']}={found['image']}@{digest_of(found['image'])}" if found else line)
    return "\n".join(lines) + "\n"


def registry_digest(image: str) -> str:
    """What the registry says of `image` (name:tag). Raises PinError."""
    tool = next((name for name in TOOLS if shutil.which(name)), None)
    if tool is None:
        raise PinError(f"install one of {', '.join(TOOLS)} to ask registries")
    command = [word.format(image=image) for word in TOOLS[tool]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout.strip()
    if done.returncode or not _DIGEST.fullmatch(said):
        raise PinError(f"{' '.join(command)}: {(done.stderr or said).strip()[-500:]}")
    return said


def main(arguments: list[str] | None = None, digest_of: Callable[[str], str] = registry_digest) -> int:
    """Returns 1 when a digest cannot be had, or with `--check` when one is missing or has changed."""
    parser = argparse.ArgumentParser(prog="python docker/pin.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when digests are missing or moved")
    parser.add_argument("--file", type=Path, default=FILE, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    before = options.file.read_text()
    try:
        after = pinned(before, digest_of)
    except PinError as error:
        print(f"pin: {error}", file=sys.stderr)
        return 1
    if options.check:
        print("images are pinned" if before == after else "not pinned, or tags have moved: run docker/pin.py")
        return int(before != after)
    options.file.write_text(after)
    print(f"{options.file.name}: {len(_DIGEST.findall(after))} images pinned by digest")
    return 0


if __name__ == "__main__":
    sys.exit(main())
