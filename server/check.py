"""``fedspact check``: the operator's look at a federation's settings before ``flwr run``.

Flower refuses an unknown key too, but only the SuperLink's log then names it; here the nearest known key is named.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from server.budget import forecast
from spact_models.agreement import needed
from spact_models.run_config import default_config, load_settings, parse_assignment, read_config_file
from spact_models.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact check``."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML overrides, such as flower.toml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments", help="override one setting"
    )


def run(args: argparse.Namespace) -> int:
    """Print every setting as the run would have it; a star marks what differs from the default."""
    chosen = read_config_file(args.config) if args.config else {}
    chosen.update(parse_assignment(text) for text in args.assignments)
    defaults = default_config()
    settings = load_settings(chosen)
    for key, value in settings.flat().items():
        origin = "*" if chosen.get(key, defaults[key]) != defaults[key] else " "
        decided = "   (preset)" if chosen.get(key, defaults[key]) == "preset" else ""
        print(f"{origin} {key} = {value!r}{decided}")
    for line in (*forecast(settings), *secure_lines(settings)):
        print(line)
    return 0


def secure_lines(settings: Settings) -> list[str]:
    """What secure aggregation asks of the sites, in a sentence; empty without it."""
    if not settings.secure.aggregation:
        return []
    least = settings.rounds.min_sites
    members = sorted({least, least + 1, 2 * least, 16})
    stay = ", ".join(f"{max(least, needed(settings.secure.threshold, count))} of {count}" for count in members)
    return [
        f"secure aggregation: a sum of at least {least} sites; so many must stay to the end of a round: {stay}. "
        "Every site needs signing_key and member_keys in its site.yaml"
    ]
