"""`python -m services.gateway`."""

import sys

from anyloop.config import Settings
from anyloop.log import LogError
from anyloop.telemetry.process import begin
from anyloop.transport import TransportError
from services.gateway.keys import KeysFileError
from services.gateway.ledger import LedgerError
from services.gateway.server import serve
from services.rpc import loop


def main() -> None:
    settings = Settings()
    begin("gateway", settings)
    try:
        loop.run(serve(settings))
    except (
        KeysFileError,
        LogError,
        LedgerError,
        TransportError,
        OSError,
        RuntimeError,
    ) as error:  # grpc raises RuntimeError on a taken port
        sys.exit(f"gateway: {error}")
    except KeyboardInterrupt:  # before there was anything to finish
        pass


if __name__ == "__main__":
    main()
