"""`python -m services.policy`: the policy service of one replica."""

import sys

from anyloop.config import Settings
from protos.anyloop.v1.policy_pb2_grpc import add_PolicyServiceServicer_to_server
from services.policy.server import MODEL, SERVICE, PolicyServer
from services.replica.process import run
from services.replica.replica import Kind, Parts


def policy_kind(settings: Settings) -> Kind:
    def build(parts: Parts) -> PolicyServer:
        return PolicyServer(
            parts.host,
            parts.prompts,
            parts.media,
            parts.recorder,
            parts.inflight,
            parts.defaults,
            settings.engine_max_tokens,
            settings.request_timeout_s,
        )

    register = add_PolicyServiceServicer_to_server
    return Kind(MODEL, SERVICE, settings.policy_port, settings.policy_control_port, register, build)


if __name__ == "__main__":
    sys.exit(run(policy_kind))
