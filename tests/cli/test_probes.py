import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from anyloop.cli.probes import KafkaAnswers


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def _probe(listener: socket.socket) -> KafkaAnswers:
    return KafkaAnswers("127.0.0.1", listener.getsockname()[1])


def test_a_broker_that_answers_is_ready(listener: socket.socket) -> None:
    asked: list[bytes] = []

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            size = struct.unpack(">i", connection.recv(4))[0]
            asked.append(connection.recv(size))
            connection.sendall(struct.pack(">iihi", 10, 1, 0, 0))

    broker = threading.Thread(target=answer)
    broker.start()
    assert _probe(listener).ready()
    broker.join()
    assert asked == [bytes([0, 18, 0, 0, 0, 0, 0, 1, 255, 255])]


def test_a_port_that_hangs_up_is_no_broker(listener: socket.socket) -> None:
    def hang_up() -> None:
        listener.accept()[0].close()

    thread = threading.Thread(target=hang_up)
    thread.start()
    assert not _probe(listener).ready()
    thread.join()


def test_nobody_there_is_not_ready(listener: socket.socket) -> None:
    probe = _probe(listener)
    listener.close()
    assert not probe.ready()
