"""The link that the slow-link measurement stands on: it carries every byte, counts it, and is as slow as it says."""

import socket
import threading
import time

import pytest

from simulations.benchmarks.slow_link import Link

PAYLOAD = bytes(range(256)) * 400  # 100 KiB


@pytest.fixture
def echo():
    """A server that sends back what it gets and closes when the other side has said all."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while piece := connection.recv(4096):
                    connection.sendall(piece)

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def through(link):
    """Send the payload through a link and read it back; seconds that it took."""
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", link.listens_on), timeout=60) as connection:
        threading.Thread(target=lambda: (connection.sendall(PAYLOAD), connection.shutdown(socket.SHUT_WR))).start()
        back = b"".join(iter(lambda: connection.recv(65536), b""))
    assert back == PAYLOAD
    return time.monotonic() - started


def test_every_byte_arrives_and_is_counted_both_ways(echo):
    link = Link(echo)
    through(link)
    through(link)
    link.close()
    assert (link.up, link.down) == (2 * len(PAYLOAD), 2 * len(PAYLOAD))


def test_a_link_is_no_faster_than_it_says_and_its_connections_share_it(echo):
    link = Link(echo, bits_per_second=8e6)
    two = [threading.Thread(target=through, args=(link,)) for _ in range(2)]
    started = time.monotonic()
    for thread in two:
        thread.start()
    for thread in two:
        thread.join()
    link.close()
    assert time.monotonic() - started >= 2 * len(PAYLOAD) / 1e6  # up alone; there is no upper bound on a busy machine
