"""The single addresses behind a target: calls are spread over them by gRPC, but each replica's state is asked of
itself."""

import ipaddress
import socket
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Address:
    """`target` is one replica; `server_name` what its certificate must name, empty where `target` says it."""

    target: str
    server_name: str = ""


def addresses(target: str) -> list[Address]:
    """Of `HOST:PORT`, `dns:///HOST:PORT` and `ipv4:HOST:PORT,HOST:PORT`; a name is looked up. Empty when nothing is
    known under it. Of a target of any other kind: itself. May wait for the name service."""
    scheme, _, listed = target.partition(":")
    if scheme in ("ipv4", "ipv6"):
        return [Address(one.strip()) for one in listed.split(",")]
    host, _, port = (listed.rsplit("/", 1)[-1] if scheme == "dns" else target).rpartition(":")
    if not host or not port.isdigit():
        return [Address(target)]
    if is_address(host.strip("[]")) or (scheme != "dns" and host == "localhost"):
        return [Address(f"{host}:{port}")]
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError:
        return []
    ips = sorted({str(sockaddr[0]) for *_, sockaddr in found})
    return [Address(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}", host) for ip in ips]


def is_address(host: str) -> bool:
    """Whether `host` is an IP address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
