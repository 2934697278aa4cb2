"""``fedspact site check|start|ledger``: for the people who run a site."""

from __future__ import annotations

import argparse
import json
import logging
import stat
import sys
from dataclasses import asdict
from pathlib import Path

from client.connection import look
from client.ledger import read_ledgers, table
from client.site import Site, load_site
from spact_models.errors import UserError
from spact_models.launch import show_and_run
from spact_models.quieter import quieter
from spact_models.run_config import load_settings, parse_assignment, read_config_file

SAMPLE = 8  # videos: enough to see that the table fits the files, few enough for a minute
PORT = 9101  # of the SuperNode's own Runtime API, for this machine only


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sub-commands."""
    commands = parser.add_subparsers(dest="what", required=True)
    check = commands.add_parser("check", help="read a sample, estimate, look at the connection; status 1 on a problem")
    check.add_argument("--sample", type=int, default=SAMPLE, metavar="N", help=f"videos to read (default: {SAMPLE})")
    check.add_argument("--preset", metavar="NAME", help="the run's preset, for the estimates (default: tiny)")
    check.add_argument("--config", type=Path, metavar="FILE", help="the run's TOML overrides, such as flower.toml")
    check.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments")
    check.add_argument("--no-timing", action="store_true", help="play no moves; estimate no time")
    check.add_argument("--json", action="store_true", help="the report as JSON")
    start = commands.add_parser("start", help="print and run the SuperNode's command")
    start.add_argument("--key", type=Path, metavar="FILE", help="the site's private key, for SuperNode authentication")
    start.add_argument("--insecure", action="store_true", help="without TLS: for trying on one machine only")
    start.add_argument("--port", type=int, default=PORT, help=f"on this machine only (default: {PORT})")
    start.add_argument("--print", action="store_true", dest="only_print", help="print the command, run nothing")
    ledger = commands.add_parser("ledger", help="what has left this site; status 1 when a line does not add up")
    ledger.add_argument("--json", action="store_true", help="every entry with all its names and shapes")
    for each in (check, start, ledger):
        each.add_argument("file", type=Path, metavar="site.yaml")
    for each in (check, start):
        each.add_argument("--superlink", metavar="HOST:PORT", required=each is start)
        each.add_argument("--root-certificates", type=Path, metavar="ca.crt", help="the federation's CA")


def run(args: argparse.Namespace) -> int:
    """0: as it should be; 1: a problem was found; 2, by the front door: a mistake in the file or the flags."""
    site = load_site(args.file)
    return {"check": _check, "start": _start, "ledger": _ledger}[args.what](site, args)


def _check(site: Site, args: argparse.Namespace) -> int:
    from client.site_check import add_connection, check_site, lines  # torch takes seconds; the other verbs need none

    if args.sample < 1:
        raise UserError(f"--sample = {args.sample}, must be at least 1")
    chosen = read_config_file(args.config) if args.config else {}
    chosen.update(parse_assignment(text) for text in args.assignments)
    if args.preset:
        chosen["preset"] = args.preset
    with quieter("client.video.decode", logging.ERROR):  # the report itself names what is damaged
        report = check_site(site, load_settings(chosen), args.sample, not args.no_timing)
    if args.superlink:
        add_connection(report, look(args.superlink, args.root_certificates))
    print(json.dumps(asdict(report), indent=1) if args.json else "\n".join(lines(report)))
    return 1 if report.problems else 0


def _start(site: Site, args: argparse.Namespace) -> int:  # noqa: ARG001
    words = start_command(args)
    if not args.only_print:
        found = look(args.superlink, args.root_certificates)
        if found.reached and not found.fine:  # Flower's own log would only say that it tries again
            raise UserError(f"--superlink {args.superlink}: {found.said}")
        if not found.reached:
            print(f"not there yet: {found.said}. The SuperNode goes on trying.", file=sys.stderr)
    status = show_and_run(words, args.only_print)
    if status != 0 and args.key:
        print(
            f"the SuperNode ended with status {status}. If it says 'Failed to activate SuperNode' above, the server "
            "does not know this site's key: the operator admits it with `fedspact server register CONNECTION "
            f"{args.key}.pub`",
            file=sys.stderr,
        )
    return status


def start_command(args: argparse.Namespace) -> list[str]:
    """The SuperNode's command line.

    Raises:
        UserError: neither or both of TLS and ``--insecure``, a path that Flower cannot take, a key open to others.
    """
    if (args.root_certificates is None) != args.insecure:
        raise UserError(
            "site start: give --root-certificates ca.crt (from the operator), or --insecure to try things on one "
            "machine; one of the two"
        )
    file = args.file.resolve()
    if "'" in str(file):
        raise UserError(
            f"site file {file}: its path holds a single quote, which Flower's --node-config cannot; move it"
        )
    words = ["flower-supernode", "--superlink", args.superlink, "--port", str(args.port)]
    words += ["--insecure"] if args.insecure else ["--root-certificates", str(args.root_certificates.resolve())]
    if args.key:
        words += ["--auth-supernode-private-key", str(_own_key(args.key))]
    return [*words, "--node-config", f"site='{file}'"]


def _own_key(key: Path) -> Path:
    try:
        mode = key.stat().st_mode
    except OSError as error:
        raise UserError(f"--key {key}: {error.strerror}; take the private key that belongs to this site") from None
    if stat.S_IMODE(mode) & 0o077:
        raise UserError(
            f"--key {key}: mode {stat.S_IMODE(mode):o}, must be readable by its owner alone: chmod 600 {key}"
        )
    return key.resolve()


def _ledger(site: Site, args: argparse.Namespace) -> int:
    ledgers = read_ledgers(site.state)
    if args.json:
        told = [{"file": str(each.file), "entries": each.entries, "faults": each.faults} for each in ledgers]
        print(json.dumps(told, indent=1))
    elif not ledgers:
        print(f"nothing has left site {site.name}: there is no ledger below {site.state}")
    else:
        print("\n".join(line for each in ledgers for line in table(each)))
    return 1 if any(each.faults for each in ledgers) else 0
