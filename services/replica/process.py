"""The process around one replica: settings, logs, the model host, signals, and an exit code."""

import logging
from collections.abc import Callable

from anyloop.config import Settings
from anyloop.telemetry.process import begin
from anyloop.transport import TransportError
from services.hosts import open_host
from services.replica.replica import Kind, Replica
from services.rpc import loop
from services.rpc.server import PortTaken, until_told_to_stop

logger = logging.getLogger(__name__)


async def serve(settings: Settings, kind: Kind) -> None:
    """Runs until told to stop, or until the replica can no longer follow its promotions."""
    host = open_host(settings, [kind.lineage])
    try:
        replica = Replica(settings, kind, host)
        await replica.start()
        try:
            await until_told_to_stop(replica.tasks)
        finally:
            await replica.stop()
    finally:
        await host.close()


def run(make_kind: Callable[[Settings], Kind]) -> int:
    """The exit code: 0 after a clean stop, 1 when the service cannot run (its log says why)."""
    settings = Settings()
    kind = make_kind(settings)
    begin(kind.lineage, settings)
    try:
        loop.run(serve(settings, kind))
    except (PortTaken, TransportError) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        return 0
    except Exception:
        logger.exception("the %s service cannot go on", kind.lineage)
        return 1
    return 0
