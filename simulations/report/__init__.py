"""``fedspact report``: run folders and comparisons as one HTML page that needs nothing but a browser."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact report``."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, or a comparison's folder")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: report.html in the first folder)")
    parser.add_argument("--title", help="the page's title (default: the folders' names)")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parser.add_argument(
        "--show-raw",
        action="store_true",
        help="put raw footage into the page also where it may be real (what fedspact drew is always shown)",
    )


def run(args: argparse.Namespace) -> int:
    """Collect, draw, write the page, say where it is."""
    from simulations.report.collect import collect
    from simulations.report.page import checked_out, render, write_page

    runs, comparisons = collect(args.runs)
    out = checked_out(args.out or Path(args.runs[0]) / "report.html")
    page = render(runs, comparisons, title=args.title, show_raw=args.show_raw)
    write_page(out, page)
    print(f"{out}  ({out.stat().st_size / 1e6:.1f} MB)")
    if args.open:
        import webbrowser

        if not webbrowser.open(out.as_uri()):
            print("no browser could be started here; open the file yourself")
    return 0
