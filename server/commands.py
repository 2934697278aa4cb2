"""``fedspact server start|register|status``: Flower's own commands, printed and run: its documentation applies."""

from __future__ import annotations

import argparse
from pathlib import Path

from spact_models.errors import UserError
from spact_models.launch import show_and_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sub-commands."""
    commands = parser.add_subparsers(dest="what", required=True)
    start = commands.add_parser("start", help="a SuperLink, with TLS and SuperNode authentication")
    start.add_argument("--keys", type=Path, metavar="DIR", help="the folder that `fedspact keys` made")
    start.add_argument("--insecure", action="store_true", help="without TLS: for trying on one machine only")
    start.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1; all: 0.0.0.0)")
    start.add_argument("--port", type=int, default=8000)
    start.add_argument("--database", metavar="FILE", help="Flower keeps its state there, and finds it after a restart")
    register = commands.add_parser("register", help="admit sites by their public keys")
    register.add_argument("connection", help="the SuperLink's name in Flower's config.toml")
    register.add_argument("keys", nargs="+", type=Path, metavar="KEY.pub")
    status = commands.add_parser("status", help="the SuperNodes and the runs")
    status.add_argument("connection", help="the SuperLink's name in Flower's config.toml")
    for each in (start, register, status):
        each.add_argument("--print", action="store_true", dest="only_print", help="print the commands, run nothing")


def run(args: argparse.Namespace) -> int:
    """Print each command; run it unless ``--print``. The exit status is the first one that is not 0."""
    commands = {"start": start_command, "register": register_commands, "status": status_commands}[args.what](args)
    for words in commands:
        status = show_and_run(words, args.only_print)
        if status != 0:
            return status
    return 0


def start_command(args: argparse.Namespace) -> list[list[str]]:
    """The one command that starts the SuperLink.

    Raises:
        UserError: neither or both of ``--keys`` and ``--insecure``, or a file of the keys is missing.
    """
    if (args.keys is None) != args.insecure:
        raise UserError(
            "server start: give --keys DIR (`fedspact keys DIR --server HOST --sites ...` makes it), or --insecure to "
            "try things on one machine; one of the two"
        )
    words = ["flower-superlink", "--host", args.host, "--port", str(args.port)]
    words.append("--disable-runtime-dependency-installation")
    if args.insecure:
        words.append("--insecure")
    else:
        files = {
            "--ssl-ca-certfile": args.keys / "ca.crt",
            "--ssl-certfile": args.keys / "server" / "server.crt",
            "--ssl-keyfile": args.keys / "server" / "server.key",
        }
        for file in files.values():
            if not file.is_file():
                raise UserError(f"--keys: {str(file)!r} does not exist; make the folder with `fedspact keys`")
        words += ["--enable-supernode-auth", *(word for pair in files.items() for word in map(str, pair))]
    return [[*words, *(["--database", args.database] if args.database else [])]]


def register_commands(args: argparse.Namespace) -> list[list[str]]:
    """A command for each public key.

    Raises:
        UserError: a file is missing, or is a private key.
    """
    for key in args.keys:
        if not key.is_file():
            raise UserError(f"register {str(key)!r}: no such file; name the sites' *.pub files")
        if b"PRIVATE KEY" in key.read_bytes()[:200]:
            raise UserError(
                f"register {str(key)!r}: this is a private key, which stays at the site; name the .pub file"
            )
    return [["flwr", "supernode", "register", str(key), args.connection] for key in args.keys]


def status_commands(args: argparse.Namespace) -> list[list[str]]:
    """SuperNodes first, then runs."""
    return [["flwr", "supernode", "list", args.connection], ["flwr", "list", args.connection]]
