"""`python -m bench.rollout.memory_controller BASE`: the controller of a fleet too large for one machine.

It is `python -m k8s`, but its calls to replicas end here: a status takes `CALL_SECONDS`, a change of weights
`SWAP_SECONDS`, and every replica begins with `BASE`. Nothing else is imported, so that its memory is the controller's.
"""

import asyncio
import sys

import k8s.__main__ as controller
from anyloop.config import Settings
from k8s.pods import Pod
from k8s.replicas import Served

CALL_SECONDS, SWAP_SECONDS = 0.002, 0.2  # a status over a local network; load and switch of a small model


class MemoryReplicas:
    """Satisfies k8s.replicas.Replicas."""

    def __init__(self, settings: Settings) -> None:
        self._base = sys.argv[1]
        self._versions: dict[str, str] = {}

    async def status(self, pod: Pod) -> Served:
        await asyncio.sleep(CALL_SECONDS)
        return Served(self._versions.get(pod.name, self._base))

    async def activate(self, pod: Pod, version: str, mode: str) -> Served:
        await asyncio.sleep(SWAP_SECONDS)
        self._versions[pod.name] = version
        return Served(version)

    async def close(self) -> None:
        """Nothing is open."""


if __name__ == "__main__":
    controller.GrpcReplicas = MemoryReplicas  # type: ignore[misc,assignment]
    sys.exit(controller.main())
