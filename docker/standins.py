"""Stand-ins for the base images where no registry can be reached: Debian from its archive, set up as the real ones.

They prove that our RUN steps work in such a system. They do not prove the real images: see docker/README.md.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

PYTHON = "localhost/standin-python"
TRITON = "localhost/standin-triton"

_PACKAGES = "ca-certificates,netbase,tzdata,python3.11,python3.11-venv,libpython3.11,python3-pip"


class Buildah:
    """`buildah` with a storage of its own, in `work`."""

    def __init__(self, work: Path) -> None:
        store = ["--root", str(work / "store"), "--runroot", str(work / "run"), "--storage-driver", "overlay"]
        self._command = ["buildah", *store]

    def __call__(self, *arguments: str) -> str:
        """Its standard output. Raises CalledProcessError."""
        done = subprocess.run([*self._command, *arguments], stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        return bool(self("images", "--quiet", "--filter", f"reference={image}"))


def python_image(buildah: Buildah, work: Path) -> str:
    """`python:3.11-slim-bookworm`, with Debian's own Python where that has /usr/local's."""
    if buildah.has(PYTHON):
        return PYTHON
    root = work / "debian"
    if not (root / "usr/bin/python3.11").exists():
        command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for name in ("python", "python3"):
        link = root / "usr/local/bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to("/usr/bin/python3.11")
    # This machine's certificates, for whatever stands between it and its package index.
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
    (root / "etc/pip.conf").write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, str(root), "/")
    buildah("commit", "--quiet", "--rm", container, PYTHON)
    return PYTHON


def triton_image(buildah: Buildah, work: Path) -> str:
    """NVIDIA's Triton image: a shared Python 3.12 of this machine, and the server of the `nvidia-pytriton` wheel.

    Raises FileNotFoundError when this machine lacks one of them."""
    if buildah.has(TRITON):
        return TRITON
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the nvidia-pytriton wheel is not installed here: pip install 'anyloop[triton]'")
    wheel = Path(spec.origin).parent
    prefix = _shared_python("3.12")
    container = buildah("from", "--pull-never", python_image(buildah, work))
    root = Path(buildah("mount", container))
    place = root / prefix.relative_to("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(prefix, place, symlinks=True, ignore=shutil.ignore_patterns("test", "__pycache__", "site-packages"))
    pip = Path("lib/python3.12/site-packages")
    for folder in (prefix / pip).glob("pip*"):
        shutil.copytree(folder, place / pip / folder.name)
    for parent in [place, *place.parents]:
        if parent != root and root in parent.parents:
            parent.chmod(0o755)
    (root / "usr/local/bin/python").unlink()  # the real one has `python3` alone
    (root / "usr/local/bin/python3").unlink()
    (root / "usr/local/bin/python3").symlink_to(prefix / "bin/python3.12")
    server = root / "opt/tritonserver"
    backend = server / "backends/python"
    (server / "bin").mkdir(parents=True)
    shutil.copy2(wheel / "tritonserver/bin/tritonserver", server / "bin")
    shutil.copytree(wheel / "tritonserver/backends/python", backend, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(wheel / "tritonserver/python_backend_stubs/3.12/triton_python_backend_stub", backend)
    shutil.copytree(wheel.parent / "nvidia_pytriton.libs", server / "lib")
    (root / "etc/ld.so.conf.d/triton.conf").write_text(f"/opt/tritonserver/lib\n{prefix}/lib\n")
    buildah("run", "--isolation", "chroot", container, "--", "ldconfig")
    buildah("commit", "--quiet", "--rm", container, TRITON)
    return TRITON


def _shared_python(version: str) -> Path:
    for executable in _on_path(f"python{version}"):
        ask = "import sys, sysconfig; print(sys.base_prefix if sysconfig.get_config_var('Py_ENABLE_SHARED') else '')"
        done = subprocess.run([executable, "-c", ask], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() not in ("", "/usr"):
            return Path(done.stdout.strip())
    raise FileNotFoundError(f"no Python {version} with a shared library is installed here")


def _on_path(name: str) -> list[str]:
    folders = [*os.environ.get("PATH", os.defpath).split(os.pathsep), str(Path.home() / ".pyenv/shims")]
    versions = sorted(str(path) for path in (Path.home() / ".pyenv/versions").glob(f"{name[6:]}.*/bin/{name}"))
    return [found for folder in folders if (found := shutil.which(name, path=folder))] + versions
