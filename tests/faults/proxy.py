"""A network that can be cut: a TCP proxy between the services and the broker, on a thread of its own."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

_CHUNK = 64 * 1024
_IN_FLIGHT = 64  # chunks under way in one direction of one connection; more stop the reading, as a full window does
_NO_LINGER = struct.pack("ii", 1, 0)
_Line = asyncio.Queue[tuple[float, bytes]]


@dataclass(frozen=True)
class Link:
    """What the network does to bytes: each waits `latency_s`, and a connection carries `bytes_per_s` (0: no bound)."""

    latency_s: float = 0.0
    bytes_per_s: float = 0.0


class TcpProxy:
    """`with TcpProxy(port_of_the_broker) as proxy: ... proxy.cut(); proxy.heal()`. Clients connect to `proxy.port`.

    A cut is a black hole: connections stay open and nothing arrives, as when a cable is pulled; what was under way
    arrives after the healing, as it would by retransmission. `refuse` is a network that says no: resets.
    """

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy", daemon=True)
        self._passable = asyncio.Event()
        self._refusing = False
        self._link = Link()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Nothing passes from now on, and nobody is told."""
        self._do(self._passable.clear)

    def refuse(self) -> None:
        """Resets every connection, and every new one."""

        def start_refusing() -> None:
            self._refusing = True
            for task in self._connections:
                task.cancel()

        self._do(start_refusing)

    def slow(self, latency_s: float, bytes_per_s: float) -> None:
        """A long, thin line."""
        self._do(lambda: setattr(self, "_link", Link(latency_s, bytes_per_s)))

    def heal(self) -> None:
        """A good network again."""

        def restore() -> None:
            self._refusing, self._link = False, Link()
            self._passable.set()

        self._do(restore)

    def _do(self, change: Callable[[], None]) -> None:
        async def apply() -> None:
            change()

        self._call(apply())

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start(self) -> None:
        self._passable.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            if self._refusing:
                return
            await self._passable.wait()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            ends.append(far_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, far_writer))
                group.create_task(self._carry(far_reader, writer))
        except (OSError, ExceptionGroup):
            pass  # one end is gone: so is the other, below
        finally:
            for end in ends:
                # Without time to linger, closing sends a reset.
                with contextlib.suppress(OSError):  # closed already
                    end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                end.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction, until its end; an end of the stream travels like the bytes before it."""
        line: _Line = asyncio.Queue(_IN_FLIGHT)
        delivery = asyncio.create_task(self._deliver(line, writer))
        try:
            data = b"."
            while data:
                data = await reader.read(_CHUNK)
                put = asyncio.create_task(line.put((asyncio.get_running_loop().time() + self._link.latency_s, data)))
                await asyncio.wait({put, delivery}, return_when=asyncio.FIRST_COMPLETED)
                if delivery.done():
                    put.cancel()
                    break
            await delivery
        finally:
            delivery.cancel()

    async def _deliver(self, line: _Line, writer: asyncio.StreamWriter) -> None:
        while True:
            due, data = await line.get()
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            if self._link.bytes_per_s:
                await asyncio.sleep(len(data) / self._link.bytes_per_s)
            await self._passable.wait()
            if not data:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
