"""``fedspact demo``: the whole mission once, on videos it makes itself: sites, game, judgement, pictures, report."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from server.runs import SUMMARY, RunFolder, default_run_path
from simulations.federated import refuse_local_statistics, simulate
from simulations.laboratory import Laboratory, add_run_arguments, finish, keep_rows, readable, settings_from
from simulations.partition import load_rows
from simulations.pictures import before_after_film, before_after_sheet, choose_rows
from simulations.report.collect import collect
from simulations.report.page import render, write_page
from simulations.synthetic import SynthConfig, synthesize
from spact_models.checkpoint import ANONYMIZER_FILE
from spact_models.interrupted import as_typed, go_on_with
from spact_models.networks import load_anonymizer
from spact_models.seeds import pick_device

SITES = {"simulation.sites": 3, "simulation.partition_by": "site", "simulation.unlabelled_sites": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact demo``."""
    add_run_arguments(parser, data=False)
    parser.add_argument("--clips", type=int, default=480, help="videos to make (default: %(default)s)")
    parser.add_argument("--identities", type=int, default=12, help="people in them (default: %(default)s)")
    parser.add_argument(
        "--sites", type=int, default=3, metavar="N", help="sites, the last without action labels (default: 3)"
    )


def run(args: argparse.Namespace) -> int:
    """Make videos, train, judge, draw, report."""
    started = time.monotonic()
    settings = settings_from(args, {**SITES, "simulation.sites": args.sites})
    pick_device(settings.device)
    refuse_local_statistics(settings)
    folder = RunFolder(default_run_path(settings.run_dir), settings.rounds.keep_checkpoints)
    print(f"1/4  making {args.clips} videos of {args.identities} people at {args.sites} sites")
    config = SynthConfig(clips=args.clips, identities=args.identities, sites=args.sites, seed=settings.seed)
    manifest: Path = synthesize(config, folder.path / "synthetic", force=True)
    rows = load_rows(manifest, settings.simulation, settings.seed)
    lab = Laboratory(settings, folder, rows, folder.path / "cache", started)
    with go_on_with(lambda: _onward(lab)):
        return _play(lab, args.sites)


def _onward(lab: Laboratory) -> str:
    run = as_typed(lab.run.path)
    if (lab.run.path / SUMMARY).exists():
        return f"it is trained and judged; draw it with: fedspact report {run}"
    if lab.run.begun:
        return f"go on with: fedspact simulate --resume {run}, then fedspact report {run}"
    return "begin it again with the same command"


def _play(lab: Laboratory, sites: int) -> int:
    settings, folder = lab.settings, lab.run
    lab.rows = readable(lab.rows, lab.cache, settings.simulation.unreadable_share)
    keep_rows(lab)
    rounds = settings.rounds
    print(f"2/4  training at {sites} sites: {rounds.warmup} warm-up and {rounds.minimax} minimax rounds")
    simulate(lab)
    print("3/4  judging with fresh networks on held-out videos\n")
    finish(lab, sites=sites, kind="federated", with_retrieval=False)
    print("4/4  drawing before and after, and the report")
    anonymizer, _, _ = load_anonymizer(folder.path / ANONYMIZER_FILE)
    chosen = choose_rows(lab.rows, 6)
    before_after_sheet(anonymizer, chosen, folder.path / "before_after.png")
    before_after_film(anonymizer, chosen, folder.path / "before_after.mp4")
    write_page(folder.path / "report.html", render(*collect([folder.path]), title="The demo", show_raw=False))
    for name in ("report.html", "before_after.png", "before_after.mp4", "summary.json", ANONYMIZER_FILE):
        print(f"     {folder.path / name}")
    return 0
