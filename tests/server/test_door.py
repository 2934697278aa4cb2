"""The door, from outside: what crosses the wire between real processes, and who is let in."""

import json
from collections import defaultdict

import h11
import pytest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from client.egress import METRICS, digest
from server import keys
from server.keys import make_keys
from server.runs import RunFolder
from simulations.benchmarks.slow_link import Link

pytestmark = pytest.mark.slow

PUSH = "/v1/fleet/push-object"
QUESTIONS = {  # what else a SuperNode says, and how long it may be at most: no update and no picture fits in there
    "/v1/fleet/register-node": 400,  # its public key
    "/v1/fleet/activate-node": 400,
    "/v1/fleet/deactivate-node": 400,
    "/v1/fleet/unregister-node": 400,
    "/v1/fleet/send-node-heartbeat": 100,
    "/v1/fleet/pull-messages": 100,
    "/v1/fleet/pull-object": 200,
    "/v1/fleet/get-run": 100,
    "/v1/fleet/get-fab": 200,
    "/v1/fleet/confirm-message-received": 200,
    "/v1/fleet/push-messages": 20_000,  # hashes of the objects that follow
}


class Tap(Link):
    """A TCP proxy that keeps every byte."""

    def __post_init__(self):
        self.heard = defaultdict(bytearray)
        super().__post_init__()

    def passed(self, piece, way, connection):
        self.heard[way, connection] += piece
        super().passed(piece, way, connection)

    @property
    def said(self) -> list[bytes]:
        """What the site said, connection by connection."""
        return [bytes(data) for (way, _), data in self.heard.items() if way == "up"]


def requests(data: bytes):
    """``(path, header names, body)`` of each HTTP request in one direction of a connection."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    connection.receive_data(b"")
    path, names, body = "", [], b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            path, names, body = event.target.decode(), [name.decode() for name, _ in event.headers], b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            yield path, names, body
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()
        else:
            return


def test_only_listed_tensors_and_figures_cross_the_wire(loopback, deal, fast, tmp_path):
    here = loopback("tapped")
    (file,) = deal(tmp_path, 1)
    here.link()
    tap = Tap(here.link_port)
    here.node(0, file, port=tap.listens_on)
    run = tmp_path / "run"
    here.run({**fast, "rounds.minimax": 1, "rounds.timeout_seconds": 300.0, "run_dir": str(run)})

    objects: dict[str, bytes] = {}
    for data in tap.said:
        for path, headers, body in requests(data):
            assert path in {PUSH, *QUESTIONS}
            assert len(body) <= QUESTIONS.get(path, len(body))
            assert all(name.startswith("flwr-") or name in ORDINARY_HEADERS for name in headers)
            if path == PUSH:
                pushed = PushObjectRequest.FromString(body)
                objects[pushed.object_id] = pushed.object_content
    messages = [
        inflate_object_from_contents(name, dict(objects))
        for name, content in objects.items()
        if content.startswith(b"Message ")
    ]
    messages.sort(key=lambda message: message.metadata.created_at)  # a SuperNode takes any connection that is free
    assert [len(message.content) for message in messages] == [1, 3, 3, 2]  # join, two rounds, the evaluation
    joined, *trained, evaluated = (message.content for message in messages)
    assert {name: sorted(record) for name, record in joined.items()} == {
        "site": ["classes", "name", "test_rows", "train_rows"]
    }
    assert {name: sorted(record) for name, record in evaluated.items()} == {
        "metrics": ["examples", "top1"], "site": ["name"]
    }  # fmt: skip
    ledger = file.parent / "state" / RunFolder.open(run).federation / "ledger.jsonl"
    entries = [json.loads(line) for line in ledger.read_text().splitlines()]
    for content, entry in zip(trained, entries, strict=True):
        assert set(content) == {"update", "metrics", "site"}
        arrays = {name: array.numpy() for name, array in content["update"].items()}
        assert {name: [str(each.dtype), *each.shape] for name, each in arrays.items()} == entry["arrays"]
        assert digest(arrays.values()) == entry["sha256"]
        assert {name.partition(".")[0] for name in arrays} == {"anonymizer", "action"}
        assert set(content["metrics"]) <= set(METRICS)
        assert set(content["site"]) == {"name"}
    everything = b"".join(tap.said)
    for word in (str(file.parent), ".mp4", "home-", "manifest", "bright"):  # paths, file names, sources, attributes
        assert word.encode() not in everything, word


ORDINARY_HEADERS = {
    "host", "accept", "accept-encoding", "connection", "user-agent", "content-type", "content-length",
}  # fmt: skip


@pytest.fixture(scope="module")
def secured(loopback, tmp_path_factory):
    """A SuperLink with TLS and authentication, started by our own commands; site ``north`` is admitted."""
    folder = tmp_path_factory.mktemp("secured")
    make_keys(folder / "keys", ["127.0.0.1"], ["north", "south"], 30)
    here = loopback("tls")
    here.keys = folder / "keys"
    here.connect(here.keys / "ca.crt")
    here.start_link("fedspact", "server", "start", "--keys", str(here.keys), "--port", str(here.link_port))
    here.do("fedspact", "server", "register", "loopback", str(here.keys / "sites" / "north" / "north.key.pub"))
    return here


def site_start(here, name, file, key, ca=None, port=None):
    """``fedspact site start`` as the site's people type it."""
    words = ("--superlink", f"127.0.0.1:{port or here.link_port}", "--port", str(here.node_ports.pop()))
    return here.start(
        name, "fedspact", "site", "start", str(file), *words,
        "--root-certificates", str(ca or here.keys / "ca.crt"), "--key", str(key),
    )  # fmt: skip


def test_with_tls_nothing_can_be_read(secured, deal, fast, tmp_path):
    (file,) = deal(tmp_path, 1)
    tap = Tap(secured.link_port)
    site_start(secured, "north", file, secured.keys / "sites" / "north" / "north.key", port=tap.listens_on)
    run = tmp_path / "run"
    shown = secured.run({**fast, "rounds.minimax": 0, "rounds.timeout_seconds": 300.0, "run_dir": str(run)})
    assert (run / "summary.json").exists(), shown
    ledger = file.parent / "state" / RunFolder.open(run).federation / "ledger.jsonl"
    sent = json.loads(ledger.read_text())["bytes"]
    everything = b"".join(tap.said)
    assert len(everything) > sent
    for data in tap.said:
        assert data[:2] in (b"", b"\x16\x03")  # a TLS handshake; or a connection that was only tried
    for word in (b"HTTP/1.1", b"anonymizer", b"ArrayRecord", b"site-1", b"PUBLIC KEY", b"flwr"):
        assert word not in everything


def ended(here, name) -> str:
    """What a process said that was to end by itself, and not well."""
    process = here.running[name]
    here.until(lambda: process.poll() is not None, f"{name} ends")
    assert process.returncode not in (0, None)
    return here.shown(name)


def test_a_key_that_was_not_registered_is_turned_away_with_the_remedy(secured, deal, tmp_path):
    (file,) = deal(tmp_path, 1)
    site_start(secured, "stranger", file, secured.keys / "sites" / "south" / "south.key")
    said = ended(secured, "stranger")
    assert "Failed to activate SuperNode" in said
    assert "the operator admits it with `fedspact server register CONNECTION" in said


def test_a_wrong_ca_is_said_before_anything_starts(secured, deal, tmp_path):
    (file,) = deal(tmp_path, 1)
    make_keys(tmp_path / "other", ["127.0.0.1"], [], 30)
    key = secured.keys / "sites" / "north" / "north.key"
    site_start(secured, "wrong-ca", file, key, ca=tmp_path / "other" / "ca.crt")
    assert "the server's certificate is not from the CA in" in ended(secured, "wrong-ca")


def test_an_expired_certificate_is_said_before_anything_starts(loopback, deal, tmp_path, monkeypatch):
    (file,) = deal(tmp_path, 1)
    here = loopback("expired")
    here.keys = tmp_path / "old"

    class Earlier(keys.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) - keys.timedelta(days=100)

    monkeypatch.setattr(keys, "datetime", Earlier)
    make_keys(here.keys, ["127.0.0.1"], ["north"], 30)
    here.start_link("fedspact", "server", "start", "--keys", str(here.keys), "--port", str(here.link_port))
    site_start(here, "late", file, here.keys / "sites" / "north" / "north.key")
    assert "the server's certificate (or its CA's) has expired" in ended(here, "late")


def test_of_two_sites_with_one_key_the_second_is_turned_away(secured, deal, tmp_path):
    first, second = deal(tmp_path, 2)
    key = secured.keys / "sites" / "north" / "north.key"
    if "north" not in secured.running:
        site_start(secured, "north", first, key)
    secured.await_nodes(1)
    site_start(secured, "copy", second, key)
    assert "Failed to activate SuperNode" in ended(secured, "copy")
    assert secured.running["north"].poll() is None
