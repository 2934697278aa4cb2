"""``fedspact watch RUN``: what a run is doing, from its folder alone; on a terminal live, elsewhere a line a round."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from server.watch_view import View, look, panel, plain, plain_round
from spact_models.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact watch``."""
    parser.add_argument("run", type=Path, metavar="RUN", help="the run folder (run_dir)")
    parser.add_argument("--once", action="store_true", help="show how it stands and end")
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Follow the run to its end. Exit status: 0 it is complete or goes on, 1 it has stopped."""
    if not args.interval > 0:
        raise UserError(f"--interval {args.interval:g}, must be above 0")
    console = Console()
    if args.once:
        view = look(args.run)
        if console.is_terminal:
            console.print(panel(view))
        else:
            print(_report(view))
    elif console.is_terminal:
        view = _live(args.run, args.interval, console)
    else:
        view = _lines(args.run, args.interval)
    return int(view.stage.startswith("stopped"))


def _live(path: Path, interval: float, console: Console) -> View:
    view = look(path)
    with Live(panel(view), console=console, auto_refresh=False) as live:
        while not view.ended:
            time.sleep(interval)
            view = look(path)
            live.update(panel(view), refresh=True)
    return view


def _lines(path: Path, interval: float) -> View:
    """No terminal: each finished round once, then how it stands at the end."""
    said = 0
    while True:
        view = look(path)
        for line in view.rounds[said:]:
            print(plain_round(line), flush=True)
        said = len(view.rounds)
        if view.ended:
            print(plain(view))
            sys.stdout.flush()
            return view
        time.sleep(interval)


def _report(view: View) -> str:
    return "\n".join([*map(plain_round, view.rounds), plain(view)])
