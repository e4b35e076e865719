"""`python -m k8s`: the controller of PolicyRollouts. Its settings are described in k8s/config.py."""

import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from pydantic import ValidationError

from anyloop.config import Settings
from anyloop.log import open_log
from anyloop.telemetry.logs import configure
from anyloop.telemetry.metrics import expect_controller, start_metrics_server
from k8s.cluster import Cluster, NoCluster
from k8s.config import ControllerSettings
from k8s.controller import lead
from k8s.health import health_port
from k8s.lease import Leadership
from k8s.replicas import GrpcReplicas

logger = logging.getLogger("k8s")


async def control(settings: Settings, controller: ControllerSettings) -> None:
    """Until SIGTERM or SIGINT. Raises what keeps the controller from working at all."""
    log = await asyncio.to_thread(open_log, settings.effective_log_url)
    expect_controller()
    stop_metrics = start_metrics_server(settings.metrics_port, settings.bind)
    replicas = GrpcReplicas(settings)
    try:
        async with Cluster.open(controller) as cluster, health_port(settings):
            watched = "" if controller.namespace == "*" else cluster.namespace
            own = controller.lease_namespace or cluster.namespace
            leadership = Leadership(cluster, controller, own)

            async def leading() -> None:
                await lead(cluster, log, replicas, controller, watched, lambda: leadership.held)

            logger.info("waiting for the lease %s/%s as %s", own, controller.lease_name, controller.holder)
            await _until_told(leadership.run(leading))
    finally:
        await replicas.close()
        stop_metrics()
        await asyncio.to_thread(log.close)


async def _until_told(work: Coroutine[Any, Any, None]) -> None:
    """Runs `work` until a signal comes; its error is raised."""
    running = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        logger.info("told to stop")


def main() -> int:
    """The exit code: 0 after a clean stop, 1 when it cannot work, 2 when its settings are wrong."""
    try:
        settings, controller = Settings(), ControllerSettings()
    except ValidationError as error:
        print(error, file=sys.stderr)
        return 2
    configure("controller", settings.log_level)
    try:
        asyncio.run(control(settings, controller))
    except (NoCluster, OSError) as error:
        logger.error("%s", error)
        return 1
    except Exception:
        logger.exception("the controller cannot go on")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
