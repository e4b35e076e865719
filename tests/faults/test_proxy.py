import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import TcpProxy


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                return

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def _connect(proxy: TcpProxy, timeout: float = 5.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout)


def _echoed(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    got = b""
    while len(got) < len(data):
        got += connection.recv(65536)
    return got


def test_bytes_pass_both_ways_in_order_and_so_does_the_end(echo: int) -> None:
    data = bytes(range(256)) * 8192
    with TcpProxy(echo) as proxy, _connect(proxy) as connection:
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        got = b""
        while len(got) < len(data):
            got += connection.recv(65536)
        sender.join()
        assert got == data
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_a_cut_swallows_what_is_sent_and_the_healing_delivers_it(echo: int) -> None:
    with TcpProxy(echo) as proxy, _connect(proxy) as connection:
        assert _echoed(connection, b"before") == b"before"
        proxy.cut()
        connection.sendall(b"during")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        proxy.heal()
        connection.settimeout(5)
        assert connection.recv(6) == b"during"


def test_a_connection_made_during_a_cut_works_after_it(echo: int) -> None:
    with TcpProxy(echo) as proxy:
        proxy.cut()
        with _connect(proxy) as connection:
            connection.sendall(b"early")
            proxy.heal()
            assert connection.recv(5) == b"early"


def test_a_refusing_network_resets_old_and_new_connections(echo: int) -> None:
    with TcpProxy(echo) as proxy, _connect(proxy) as old:
        assert _echoed(old, b"hello") == b"hello"
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            old.recv(1)
        with pytest.raises(ConnectionResetError), _connect(proxy) as new:
            new.recv(1)
        proxy.heal()
        with _connect(proxy) as again:
            assert _echoed(again, b"back") == b"back"


def test_a_slow_line_delays_each_way_and_bounds_the_rate(echo: int) -> None:
    with TcpProxy(echo) as proxy, _connect(proxy) as connection:
        proxy.slow(0.1, 100_000)
        begun = time.monotonic()
        assert _echoed(connection, b"x" * 10_000) == b"x" * 10_000
        # 0.1 s and 10 000 / 100 000 s, there and back.
        assert 0.38 < time.monotonic() - begun < 1.5


def test_where_nobody_listens_the_client_is_cut_off() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TcpProxy(port) as proxy, pytest.raises(ConnectionResetError), _connect(proxy) as connection:
        connection.recv(1)  # the reset may have come while it connected
