"""An image as a container: read-only, as the image's user, without capabilities, on the machine's own network.

`crun` runs it, as a cluster's nodes would, but without control groups: limits of memory and processes are not proven.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from standins import Buildah

_MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "mode=1777"]},
    {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},
]
_FILES = ("/etc/hosts", "/etc/resolv.conf")


class Container:
    """One running container. `volumes` are folders of this machine by their place in the container, made writable for
    the image's user; the log goes to `<work>/<name>/log`."""

    def __init__(
        self,
        buildah: Buildah,
        work: Path,
        image: str,
        name: str,
        command: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        volumes: Mapping[str, Path] | None = None,
    ) -> None:
        self._buildah, self.name = buildah, name
        self._bundle = work / name
        self._bundle.mkdir(parents=True, exist_ok=True)
        self._copy = buildah("from", "--pull-never", image)
        root = buildah("mount", self._copy)
        told: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]
        self._user = int(told["User"].partition(":")[0])
        self._environment = [*told["Env"], *(f"{key}={value}" for key, value in (environment or {}).items())]
        mounts = [*_MOUNTS, *(_bind(file, file, "ro") for file in _FILES)]
        for place, folder in (volumes or {}).items():
            folder.mkdir(parents=True, exist_ok=True)
            os.chown(folder, self._user, self._user)
            mounts.append(_bind(str(folder), place, "rw"))
        self._process = {
            "user": {"uid": self._user, "gid": self._user},
            "args": [*(told["Entrypoint"] or []), *(command or told["Cmd"])],
            "env": self._environment,
            "cwd": told["WorkingDir"],
            "noNewPrivileges": True,
            "capabilities": {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")},
        }
        namespaces = [{"type": kind} for kind in ("mount", "pid", "ipc", "uts")]
        config = {
            "ociVersion": "1.0.2",
            "process": self._process,
            "root": {"path": root, "readonly": True},
            "hostname": name,
            "mounts": mounts,
            "linux": {"namespaces": namespaces},
        }
        (self._bundle / "config.json").write_text(json.dumps(config))
        # crun refuses machines with both versions of control groups, of which it is to use none: it sees the first.
        alone = 'mountpoint -q /sys/fs/cgroup/unified && umount /sys/fs/cgroup/unified; exec crun "$@"'
        state = ["--root", str(work / "crun"), "--cgroup-manager=disabled"]
        self._crun = ["unshare", "--mount", "sh", "-c", alone, "crun", *state]
        with (self._bundle / "log").open("wb") as log:
            self._runtime = subprocess.Popen(
                [*self._crun, "run", "--bundle", str(self._bundle), name], stdout=log, stderr=log
            )

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A second process in the container, with the same user and environment."""
        described = self._bundle / "exec.json"
        described.write_text(json.dumps({**self._process, "args": list(command)}))
        asked = [*self._crun, "exec", "--process", str(described), self.name]
        return subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)

    def wait(self, seconds: float) -> int:
        """Its exit status. Raises TimeoutExpired."""
        return self._runtime.wait(seconds)

    def wait_healthy(self, seconds: float, check: Sequence[str]) -> float:
        """How long it took until `check` passed inside. Raises RuntimeError with the end of the log."""
        began = time.monotonic()
        said = ""
        while time.monotonic() < began + seconds:
            if self._runtime.poll() is not None:
                raise RuntimeError(f"{self.name} exited with {self._runtime.returncode}:\n{self.log()[-3000:]}")
            done = self.execute(*check)
            if done.returncode == 0:
                return time.monotonic() - began
            said = done.stdout + done.stderr
            time.sleep(0.5)
        raise RuntimeError(f"{self.name} is not healthy after {seconds:.0f} s: {said}\n{self.log()[-3000:]}")

    def stop(self, seconds: float = 30.0) -> tuple[int, float]:
        """SIGTERM to its first process; the exit status and how long it took. Kills it after `seconds`."""
        began = time.monotonic()
        if self._runtime.poll() is None:
            subprocess.run([*self._crun, "kill", self.name, "TERM"], check=False, capture_output=True)
            try:
                self._runtime.wait(seconds)
            except subprocess.TimeoutExpired:
                subprocess.run([*self._crun, "kill", self.name, "KILL"], check=False, capture_output=True)
                self._runtime.wait()
        took = time.monotonic() - began
        subprocess.run([*self._crun, "delete", "--force", self.name], check=False, capture_output=True)
        if self._copy:
            self._buildah("rm", self._copy)
            self._copy = ""
        return self._runtime.returncode, took

    def log(self) -> str:
        return (self._bundle / "log").read_text(errors="replace")

    @property
    def user(self) -> int:
        return self._user

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _bind(source: str, destination: str, mode: str) -> dict[str, Any]:
    options = ["rbind", "nosuid", "nodev", mode]
    return {"destination": destination, "type": "bind", "source": source, "options": options}
