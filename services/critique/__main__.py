"""`python -m services.critique`: the critique service of one replica."""

import sys

from anyloop.config import Settings
from protos.anyloop.v1.critique_pb2_grpc import add_CritiqueServiceServicer_to_server
from services.critique.server import MODEL, SERVICE, CritiqueServer
from services.replica.process import run
from services.replica.replica import Kind, Parts


def critique_kind(settings: Settings) -> Kind:
    def build(parts: Parts) -> CritiqueServer:
        return CritiqueServer(
            parts.host,
            parts.prompts,
            parts.recorder,
            parts.inflight,
            parts.defaults,
            settings.engine_max_tokens,
            settings.request_timeout_s,
        )

    register = add_CritiqueServiceServicer_to_server
    return Kind(MODEL, SERVICE, settings.critique_port, settings.critique_control_port, register, build)


if __name__ == "__main__":
    sys.exit(run(critique_kind))
