"""Keys and Flower's own commands: real certificates on a real TLS server, and what a site hears of wrong ones."""

import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from client.connection import look
from fedspact import main
from server import keys
from server.keys import make_keys
from spact_models.errors import UserError


@pytest.fixture
def made(tmp_path):
    make_keys(tmp_path / "keys", ["localhost", "127.0.0.1"], ["north", "south"], 30)
    return tmp_path / "keys"


def tls_server(folder):
    """A listening TLS server with the folder's server certificate: its port; it ends with the test's process."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server" / "server.crt", folder / "server" / "server.key")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                plain, _ = listener.accept()
                with context.wrap_socket(plain, server_side=True) as secured:
                    secured.recv(1)
            except OSError:
                continue

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def test_private_keys_are_their_owners_alone_and_belong_to_their_public_halves(made):
    for path in made.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        private = path.suffix == ".key"
        assert mode == (0o700 if path.is_dir() else 0o600 if private else 0o644), path
    for site in ("north", "south"):
        private = load_ssh_private_key((made / "sites" / site / f"{site}.key").read_bytes(), None)
        public = load_ssh_public_key((made / "sites" / site / f"{site}.key.pub").read_bytes())
        assert private.public_key() == public
        assert public.curve.name == "secp384r1"  # what SuperNode authentication takes


def test_the_certificates_hold_on_a_real_connection(made):
    port = tls_server(made)
    for host in ("localhost", "127.0.0.1"):
        found = look(f"{host}:{port}", made / "ca.crt")
        assert found.fine, found.said
        assert found.days_left in (29, 30)


def test_a_wrong_ca_another_name_an_expired_certificate_and_no_tls_are_each_said(made, tmp_path, monkeypatch):
    port = tls_server(made)
    make_keys(tmp_path / "other", ["localhost"], [], 30)
    found = look(f"localhost:{port}", tmp_path / "other" / "ca.crt")
    assert (found.reached, found.fine) == (True, False)
    assert "not from the CA in" in found.said
    named = tls_server(tmp_path / "other")
    assert "is for other names than '127.0.0.1'" in look(f"127.0.0.1:{named}", tmp_path / "other" / "ca.crt").said

    class Earlier(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz or UTC) - timedelta(days=100)

    monkeypatch.setattr(keys, "datetime", Earlier)
    make_keys(tmp_path / "old", ["localhost"], [], 30)
    assert "has expired" in look(f"localhost:{tls_server(tmp_path / 'old')}", tmp_path / "old" / "ca.crt").said
    with socket.create_server(("127.0.0.1", 0)) as plain:
        quiet = plain.getsockname()[1]
        threading.Thread(target=lambda: plain.accept()[0].sendall(b"HTTP/1.1 400\r\n\r\n"), daemon=True).start()
        assert "answers, but not with TLS" in look(f"localhost:{quiet}", made / "ca.crt").said
    refused = look(f"127.0.0.1:{quiet}", made / "ca.crt")
    assert not refused.reached
    assert "nothing listens there" in refused.said
    assert "not known here" in look("no-such-name.invalid:1", None).said


@pytest.mark.parametrize(
    ("hosts", "sites", "days", "wrong"),
    [
        (["https://a.b"], [], 1, "https://a.b"),
        (["a"], ["../x"], 1, "--sites '../x', must be letters"),
        (["a"], ["x", "x"], 1, "names a site twice"),
        (["a"], [], 0, "--days = 0, must be from 1 to 3650"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(tmp_path, hosts, sites, days, wrong):
    with pytest.raises(UserError) as caught:
        make_keys(tmp_path / "keys", hosts, sites, days)
    assert wrong in str(caught.value)
    assert not (tmp_path / "keys").exists()


def test_keys_are_never_overwritten(made, capsys):
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert main(["keys", str(made), "--server", "localhost", "--sites", "north"]) == 2
    assert "keys are never overwritten" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


def test_what_to_do_next_is_said_with_the_folders_name(tmp_path, capsys):
    out = tmp_path / "my keys"
    assert main(["keys", str(out), "--server", "localhost", "--sites", "north", "a-longer-name"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"next: fedspact server start --keys '{out}'" in lines
    assert f"then: fedspact server register CONNECTION '{out}'/sites/*/*.pub" in lines
    assert "CONNECTION is the SuperLink's name" in lines[-1]
    told = [line for line in lines if line.startswith("  ") and "CONNECTION" not in line]
    column = told[0].index("to every site")
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in told)


def test_the_wrappers_print_flowers_own_commands(made, capsys):
    assert main(["server", "start", "--keys", str(made), "--port", "8123", "--print"]) == 0
    said = capsys.readouterr().out
    for word in (
        "flower-superlink",
        "--enable-supernode-auth",
        "--port 8123",
        f"--ssl-certfile {made}/server/server.crt",
    ):
        assert word in said
    public = made / "sites" / "north" / "north.key.pub"
    assert main(["server", "register", "here", str(public), "--print"]) == 0
    assert f"flwr supernode register {public} here" in capsys.readouterr().out
    assert main(["server", "register", "here", str(public.with_suffix("")), "--print"]) == 2
    assert "this is a private key, which stays at the site" in capsys.readouterr().err
    assert main(["server", "start", "--print"]) == 2
    assert "one of the two" in capsys.readouterr().err
