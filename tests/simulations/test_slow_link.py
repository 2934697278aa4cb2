"""The link that the slow-link measurement stands on: it carries every byte, counts it, and is as slow as it says.

And the measurement itself: what crosses the links of a real federation, and that a slow one holds up nobody.
"""

import socket
import threading
import time

import pytest

from simulations.benchmarks.server_memory import SMALL
from simulations.benchmarks.slow_link import Link, measure

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


def test_a_slow_uplink_lets_down_what_comes_at_once(echo):
    link = Link(echo, bits_per_second=8e6, uplink_only=True)
    started = time.monotonic()
    link.passed(PAYLOAD * 50, "down", 0)  # over five seconds at the link's pace
    assert time.monotonic() - started < 2
    through(link)
    link.close()
    assert time.monotonic() - started >= len(PAYLOAD) / 1e6


@pytest.mark.slow
def test_what_the_history_says_was_sent_is_what_crossed_the_links_and_a_slow_site_holds_up_nobody():
    deadline, settings = 75.0, {key.replace(".", "__"): value for key, value in SMALL.items()}
    told = measure(0.25, 3, deadline, uplink_only=True, **settings)
    (line,) = told["rounds"]
    assert set(line["sites"]) == {"site-2", "site-3"}
    assert line["dropped"] == {"site-1": "no valid reply within 75 s"}
    assert max(each["seconds"] for each in line["sites"].values()) < deadline - 5
    assert line["seconds"] < deadline + 10  # its last look may still take what has come whole
    update = line["sites"]["site-2"]["bytes_up"]
    assert update > 5e6
    for link, name in zip(told["links"][1:], ("site-2", "site-3"), strict=True):
        sent, got = (line["sites"][name][key] for key in ("bytes_up", "bytes_down"))
        assert sent < link["up"] < 1.03 * sent + 0.5e6  # with joining, the evaluation's reply, polls and HTTP's lines
        assert 2 * got < link["down"] < 1.03 * 2 * got + 1e6  # the weights twice: to train, and to evaluate
    assert 0.5e6 < told["links"][0]["up"] < update  # its update was on its way all the time
