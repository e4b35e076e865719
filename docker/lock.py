#!/usr/bin/env python3
"""`python docker/lock.py [IMAGE ...]`: writes docker/locks/<image>.txt, every package of it with its hashes.

Versions that are locked already stay unless they no longer fit; `--upgrade` takes the newest that fit. Uses `uv`, and
whatever package index it is set up for: no address of one gets into the files.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from contents import HERE, Image, images

BUILD = ("setuptools>=77", "wheel", "packaging", "py-cpuinfo", "ninja")  # what a package without a wheel is built with


def compile_lock(requirements: tuple[str, ...], python: str, target: Path, upgrade: bool) -> None:
    """Raises FileNotFoundError without `uv`, CalledProcessError (its message is on stderr) when nothing fits."""
    uv = shutil.which(
        "uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    )
    if uv is None:
        raise FileNotFoundError("lock: `uv` is not installed: pip install uv==0.13.9")
    command = [uv, "pip", "compile", "-", "--output-file", str(target), "--generate-hashes", "--quiet"]
    command += ["--python-version", python, "--python-platform", "x86_64-manylinux_2_28"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--no-annotate"]
    command += ["--custom-compile-command", "python docker/lock.py"]
    subprocess.run(
        [*command, *(["--upgrade"] if upgrade else [])], input="\n".join(requirements), text=True, check=True
    )


def main(arguments: list[str] | None = None) -> int:
    known: dict[str, Image] = images()
    parser = argparse.ArgumentParser(prog="python docker/lock.py", description=__doc__)
    parser.add_argument("image", nargs="*", help=f"of {', '.join(known)} (default: all, and what builds them)")
    parser.add_argument("--upgrade", action="store_true", help="the newest versions that fit")
    options = parser.parse_args(arguments)
    for name in options.image:
        if name not in known:
            parser.error(f"no such image: {name}; there are {', '.join(known)}")
    try:
        for name in options.image or known:
            compile_lock(known[name].requirements, known[name].python, known[name].lock, options.upgrade)
            print(f"{name}: {known[name].lock.read_text().count('==')} packages", flush=True)
        if not options.image:
            compile_lock(BUILD, "3.11", HERE / "locks" / "build.txt", options.upgrade)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
