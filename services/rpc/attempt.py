"""Which attempt at one request a call is. Where a connection breaks, nobody knows whether the other side goes on: the
same answer may then be made, and recorded, by two replicas."""

from collections.abc import Iterable

import grpc

from anyloop.transport.channels import ATTEMPTS

_ASKED = "x-anyloop-asked-before"  # whole calls, each of which gRPC may have sent several times
_SENT = "grpc-previous-rpc-attempts"  # by gRPC itself, where it sends a call again
_MOST = 1000


def metadata_of(asked_before: int) -> tuple[tuple[str, str], ...]:
    """What a call carries that asks again for what `asked_before` calls have not brought."""
    return ((_ASKED, str(asked_before)),) if asked_before else ()


def attempt_of(context: grpc.aio.ServicerContext) -> int:
    """0 for the first; of two attempts at one answer the later one has the higher number."""
    sent = list(context.invocation_metadata() or ())
    return ATTEMPTS * _count(sent, _ASKED) + _count(sent, _SENT)


def _count(sent: Iterable[tuple[str, str | bytes]], name: str) -> int:
    found = next((str(value) for key, value in sent if key == name), "0")
    return min(int(found), _MOST) if found.isascii() and found.isdigit() and len(found) < 10 else 0
