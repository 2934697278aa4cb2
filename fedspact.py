"""The front door: verbs and the packages that own them, imported only when called."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence

VERBS = {
    "demo": ("simulations.demo", "the whole mission on videos it makes itself, in minutes"),
    "synth": ("simulations.synthetic", "make labelled actor videos"),
    "index": ("client.video.index", "write the manifest of a folder of videos or of a published data set"),
    "simulate": ("simulations.federated", "train N sites together on one machine, and judge the result"),
    "centralize": ("simulations.centralized", "the same game on the pooled videos, to compare against"),
    "evaluate": ("simulations.evaluate", "judge an anonymizer by protocol, with fresh networks"),
    "compare": ("simulations.compare", "centralized, federated, each site alone, plain obfuscation: one judge"),
    "bench": ("simulations.benchmarks.command", "time each part beside a plain twin, by ratios"),
    "audit": ("simulations.audit", "attack a run: what its updates, networks and noise give away"),
    "report": ("simulations.report", "one HTML page of a run's or a comparison's evidence"),
    "runs": ("simulations.runs_list", "list runs with their key figures"),
    "watch": ("server.watch", "follow a run on the terminal: rounds, sites, losses, who was left out"),
    "anonymize": ("client.anonymize.command", "anonymize files, folders, cameras and pipes with a trained anonymizer"),
    "export": ("server.export", "the anonymizer as a file that others can run, with its model card"),
    "release": ("simulations.release", "have the sites judge an anonymizer under a policy, and sign it on a pass"),
    "check": ("server.check", "check a federation's settings before `flwr run`, and show them all"),
    "site": ("client.site_command", "check a site and its connection, start its SuperNode, read its ledger"),
    "keys": ("server.keys", "make the CA, the server's certificate and a key pair for each site"),
    "server": ("server.commands", "start a SuperLink, admit sites, see who is there: Flower's own commands"),
    "serve": ("client.edge.serving", "anonymize cameras' frames as a gRPC service at the site"),
    "camera": ("client.edge.camera", "feed a camera or a file through such a service"),
    "cache": ("client.video.cache", "show or clear a site's decoded frames"),
}
# Torch's threads (GNU OpenMP) spin while they wait for each other, by default so long that a machine with other work
# crawls. Measured on 2 cores, one anonymizer's move: alone 0.13 s with the default, 0.14 s with this, 0.19 s without
# spinning; with three such processes at once 6.2 s with the default, 0.45 s with this.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

OPTIONS = ("--help", "--version")  # without a verb
DESCRIPTION = "Sites train a video anonymizer together; raw footage never leaves them."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Exit status: 0 success, 2 a user's mistake, 1 anything else, 130 interrupted (`anonymize`: 3)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        from spact_models import __version__

        print(f"fedspact {__version__}")
        return 0
    if words[0] not in VERBS:
        return _unknown(words[0])
    debug = "--debug" in words
    try:
        return _run_verb(words[0], [word for word in words[1:] if word != "--debug"])
    except KeyboardInterrupt as stop:
        onward = getattr(stop, "__notes__", [])  # by those who know how to go on (spact_models/interrupted.py)
        print("\n" + "\n".join(["interrupted; what was written before is whole", *onward]), file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, for example `| head`
        sys.stderr.close()
        return 1
    except Exception as error:
        return _report(error, debug)


def _run_verb(verb: str, words: Sequence[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("fedspact.networks").setLevel(logging.INFO)  # which pretrained tensors arrived, and which not
    args = build_parser(verb).parse_args(words)
    return int(importlib.import_module(VERBS[verb][0]).run(args))


def build_parser(verb: str) -> argparse.ArgumentParser:
    """What ``fedspact VERB`` understands."""
    about = f"{VERBS[verb][1]}."
    parser = argparse.ArgumentParser(prog=f"fedspact {verb}", description=about[0].upper() + about[1:])
    importlib.import_module(VERBS[verb][0]).add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _report(error: Exception, debug: bool) -> int:
    """A user's mistake: the message, status 2. Ours: what it was and how to see more, status 1."""
    from spact_models.errors import RunStopped, UserError

    if debug:
        traceback.print_exc()
    if isinstance(error, UserError):
        print(f"fedspact: {error}", file=sys.stderr)
        return 2
    if isinstance(error, RunStopped):
        print(f"fedspact: the run stopped: {error}", file=sys.stderr)
        return 1
    print(f"fedspact: {type(error).__name__}: {error}", file=sys.stderr)
    if not debug:
        print("This looks like a fault of ours; add --debug to the command to see where.", file=sys.stderr)
    return 1


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {about}" for verb, (_, about) in VERBS.items()]
    return "\n".join(
        [
            "usage: fedspact VERB [options]      fedspact VERB --help      fedspact --version",
            "",
            DESCRIPTION,
            "",
            *lines,
            "",
            "Real sites train over Flower: `flwr run . --run-config flower.toml` (docs/sites.md).",
        ]
    )


def _unknown(verb: str) -> int:
    from spact_models.nearest import nearest

    kind, known = ("an option", OPTIONS) if verb.startswith("-") else ("a command", tuple(VERBS))
    near = nearest(verb, known)
    meant = f" Did you mean {near!r}?" if near else ""
    print(f"fedspact: {verb!r} is not {kind}.{meant} `fedspact --help` lists them all.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
