"""Replicas come and go behind a name: a real name server, real addresses, and the requests follow."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from anyloop.config import Settings
from anyloop.transport import Address, addresses, open_channel
from tests.transport.replicas import SERVICE, Load, Replica

PLAIN = Settings(_env_file=None)


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for an IPv4 address with `ips` (RFC 1035), and others with nothing."""

    def __init__(self, ips: list[str]) -> None:
        self.ips = ips

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        end = data.index(b"\0", 12) + 5
        (kind,) = struct.unpack(">H", data[end - 4 : end - 2])
        found = self.ips if kind == 1 else []
        head = data[:2] + struct.pack(">HHHHH", 0x8180, 1, len(found), 0, 0)
        records = [b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(ip) for ip in found]
        self._transport.sendto(head + data[12:end] + b"".join(records), addr)


@asynccontextmanager
async def name_server(*ips: str) -> AsyncIterator[tuple[NameServer, str]]:
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: NameServer(list(ips)), local_addr=("127.0.0.1", 0)
    )
    try:
        yield server, "{}:{}".format(*transport.get_extra_info("sockname"))
    finally:
        transport.close()


async def test_replicas_are_found_by_name_and_new_ones_as_connections_end() -> None:
    """Three replicas on one port of three loopback addresses, as pods behind a headless service are."""
    made = [Replica(f"replica-{index}") for index in range(3)]
    for replica in made:
        replica.port, replica.connection_seconds = made[0].port, 1.0
        await replica.start(f"127.0.0.{made.index(replica) + 1}")
    first, second, third = made
    try:
        async with (
            name_server("127.0.0.1", "127.0.0.2") as (names, at),
            open_channel(PLAIN, f"dns://{at}/policy.anyloop.test:{first.port}", service=SERVICE) as channel,
            Load(channel) as load,
        ):
            await load.all_answer(first, second)
            assert third.answered == 0
            names.ips = ["127.0.0.2", "127.0.0.3"]
            await load.until(lambda by: by[third.name] >= 5, seconds=15)
            await asyncio.sleep(0.2)  # what was on its way to the first
            before = first.answered
            await load.all_answer(second, third)
            assert first.answered == before
        assert load.failures == load.broken == []
    finally:
        for replica in made:
            await replica.stop()


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("127.0.0.1:50061", [Address("127.0.0.1:50061")]),
        ("localhost:50061", [Address("localhost:50061")]),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", [Address("10.0.0.1:1"), Address("10.0.0.2:2")]),
        ("ipv6:[::1]:1", [Address("[::1]:1")]),
        ("[::1]:50061", [Address("[::1]:50061")]),
        ("dns:///127.0.0.1:50061", [Address("127.0.0.1:50061")]),
        ("unix:/run/policy.sock", [Address("unix:/run/policy.sock")]),
        ("dns:///nobody.invalid:50061", []),
    ],
    ids=["address", "localhost", "list", "list6", "address6", "dns address", "socket", "unknown name"],
)
def test_the_single_replicas_behind_a_target(target: str, found: list[Address]) -> None:
    assert addresses(target) == found


def test_each_address_behind_a_name_is_known_by_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates name the service, not its pods' addresses."""
    pods = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 50061)) for ip in ("10.0.0.2", "10.0.0.1", "10.0.0.2")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **named: pods)
    name = "policy-control.anyloop.svc"
    assert addresses(f"dns:///{name}:50061") == [Address("10.0.0.1:50061", name), Address("10.0.0.2:50061", name)]
    assert addresses(f"{name}:50061") == addresses(f"dns:///{name}:50061")
