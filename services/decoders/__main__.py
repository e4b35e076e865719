"""`python -m services.decoders [--modality image ...]`: the decoder service of one replica."""

import argparse
import asyncio
import logging
import sys

from anyloop.config import Settings
from anyloop.media.store import MediaStore
from anyloop.modality import MEDIA_MODALITIES, Modality
from anyloop.telemetry.metrics import start_metrics_server
from anyloop.telemetry.process import begin
from anyloop.transport import TransportError, server_credentials
from protos.anyloop.v1.decoder_pb2_grpc import add_DecoderServiceServicer_to_server
from services.decoders.server import SERVICE, DecoderServer, limits_from
from services.hosts import open_host
from services.rpc import loop
from services.rpc.readiness import wait_for_host, watch_host
from services.rpc.server import PortTaken, RpcServer, until_told_to_stop

logger = logging.getLogger(__name__)


async def serve(settings: Settings, modalities: list[Modality]) -> None:
    """Runs until told to stop."""
    host = open_host(settings, [f"decoder_{modality}" for modality in modalities])
    stop_metrics = start_metrics_server(settings.metrics_port, settings.bind)
    try:
        await wait_for_host(host)
        server = await DecoderServer.open(
            host, MediaStore(settings.effective_media_url), modalities, limits_from(settings)
        )
        rpc = RpcServer(
            f"{settings.bind}:{settings.decoder_port}",
            max_message_bytes=settings.max_body_bytes + 2**20,
            credentials=server_credentials(settings),
            health_address=f"{settings.bind}:{settings.health_port}" if settings.health_port else "",
        )
        rpc.add(SERVICE, add_DecoderServiceServicer_to_server, server)
        await rpc.start()
        watching = asyncio.create_task(watch_host(host, rpc.set_serving))
        logger.info("serving", extra={"port": rpc.port, "modalities": list(modalities)})
        try:
            await until_told_to_stop([watching])
        finally:
            watching.cancel()
            await rpc.stop(settings.drain_seconds)
    finally:
        await host.close()
        stop_metrics()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.decoders", description=__doc__)
    parser.add_argument(
        "--modality",
        action="append",
        choices=[str(modality) for modality in MEDIA_MODALITIES],
        help="serve this modality (repeat for more; default: all three)",
    )
    modalities = [Modality(name) for name in parser.parse_args().modality or MEDIA_MODALITIES]
    settings = Settings()
    begin("decoders", settings)
    try:
        loop.run(serve(settings, list(dict.fromkeys(modalities))))
    except (PortTaken, TransportError) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:  # before there was anything to finish
        return 0
    except Exception:
        logger.exception("the decoder service cannot go on")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
