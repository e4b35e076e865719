"""A channel that follows the renewal of its certificates.

gRPC's client credentials are fixed when a channel is opened, and a certificate that ran out shows only at the next
connection: after a restart of the other side, at night. So a renewal opens a second channel for the calls that begin
from then on, and the first one is closed when the last of its calls has ended.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc

from anyloop.transport.certificates import CertificateFiles, Certificates


class _Opened:
    """One channel with the number of calls that run on it."""

    def __init__(self, channel: grpc.aio.Channel, certificates: Certificates) -> None:
        self.channel, self.certificates = channel, certificates
        self.running = 0


class RotatingChannel(grpc.aio.Channel):
    """Any use looks for new certificates. Belongs to one event loop."""

    def __init__(self, files: CertificateFiles, open_with: Callable[[Certificates], grpc.aio.Channel], /) -> None:
        self._files, self._open_with = files, open_with
        self._newest = self._open()
        self._retired: set[_Opened] = set()
        self._closing: set[asyncio.Task[None]] = set()

    def _open(self) -> _Opened:
        certificates = self._files.current()
        return _Opened(self._open_with(certificates), certificates)

    def newest(self) -> _Opened:
        if self._files.current() is not self._newest.certificates:
            before, self._newest = self._newest, self._open()
            self._retired.add(before)
            self._close_if_idle(before)
        return self._newest

    def began(self, opened: _Opened, call: Any) -> None:
        opened.running += 1
        call.add_done_callback(lambda _: self._ended(opened))

    def _ended(self, opened: _Opened) -> None:
        opened.running -= 1
        self._close_if_idle(opened)

    def _close_if_idle(self, opened: _Opened) -> None:
        if opened in self._retired and not opened.running:
            self._retired.discard(opened)
            closing = asyncio.get_running_loop().create_task(opened.channel.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def unary_unary(self, *args: Any, **named: Any) -> Any:
        return _Method(self, lambda channel: channel.unary_unary(*args, **named))

    def unary_stream(self, *args: Any, **named: Any) -> Any:
        return _Method(self, lambda channel: channel.unary_stream(*args, **named))

    def stream_unary(self, *args: Any, **named: Any) -> Any:
        return _Method(self, lambda channel: channel.stream_unary(*args, **named))

    def stream_stream(self, *args: Any, **named: Any) -> Any:
        return _Method(self, lambda channel: channel.stream_stream(*args, **named))

    async def __aenter__(self) -> "RotatingChannel":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        retired, self._retired = self._retired, set()
        await asyncio.gather(*(opened.channel.close(grace) for opened in (self._newest, *retired)), *self._closing)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.newest().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.newest().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.newest().channel.channel_ready()


class _Method:
    """What a stub holds: made anew where the channel is another one than at the last call."""

    def __init__(self, owner: RotatingChannel, make: Callable[[grpc.aio.Channel], Any]) -> None:
        self._owner, self._make = owner, make
        self._opened = owner.newest()
        self._method = make(self._opened.channel)

    def __call__(self, *args: Any, **named: Any) -> Any:
        opened = self._owner.newest()
        if opened is not self._opened:
            self._opened, self._method = opened, self._make(opened.channel)
        call = self._method(*args, **named)
        self._owner.began(opened, call)
        return call
