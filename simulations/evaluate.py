"""``fedspact evaluate``: judge a finished run, or any anonymizer file, with fresh networks on a manifest."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from client.video.cache import FrameCache
from client.video.rows import Row
from server.runs import RunFolder
from simulations.judgement import REPRESENTATIONS, attackable, judge_run, table
from simulations.laboratory import judged_figures, readable
from simulations.partition import load_rows
from spact_models.checkpoint import write_atomically
from spact_models.errors import UserError
from spact_models.networks import load_anonymizer
from spact_models.run_config import load_settings, parse_assignment
from spact_models.seeds import pick_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact evaluate``."""
    parser.add_argument("model", type=Path, metavar="RUN_OR_FILE", help="a run folder, or an anonymizer.safetensors")
    parser.add_argument("--data", type=Path, required=True, metavar="MANIFEST", help="CSV with a path column")
    parser.add_argument(
        "--tasks", metavar="A,B", help="private attribute columns (default: identity, where it is known)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments", help="judge.* settings, seed"
    )
    parser.add_argument("--seed", type=int, help="of the fresh networks (default: the run's)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/cache"), metavar="DIR", help="decoded frames (default: %(default)s)"
    )
    parser.add_argument(
        "--only", metavar="A,B", help=f"representations to judge (default: {','.join(REPRESENTATIONS)})"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Judge and show the table."""
    path: Path = args.model
    if path.is_dir():
        path = RunFolder.open(path).path / "anonymizer.safetensors"
    anonymizer, trained, _ = load_anonymizer(path)
    here = {"device": "auto"}  # not the device of the machine that trained it
    chosen = {**trained.flat(), **here, **dict(parse_assignment(text) for text in args.assignments)}
    chosen.update({key: value for key, value in (("seed", args.seed), ("device", args.device)) if value is not None})
    settings = load_settings(chosen)
    device = pick_device(settings.device)
    cache = FrameCache(args.cache, settings.clip.size_px)
    rows = load_rows(args.data, settings.simulation, trained.seed)
    tasks = _tasks(args.tasks, rows)
    rows = readable(rows, cache, settings.simulation.unreadable_share)
    judgement = judge_run(anonymizer, settings, rows, cache, device, tasks=tasks, representations=_only(args.only))
    print(table(judgement))
    if args.out is not None:
        text = json.dumps(judged_figures(judgement), indent=2) + "\n"
        write_atomically(args.out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return 0


def _only(asked: str | None) -> list[str]:
    chosen = [name.strip() for name in asked.split(",")] if asked else list(REPRESENTATIONS)
    for name in chosen:
        if name not in REPRESENTATIONS:
            raise UserError(f"--only {name}: no such representation, must be among {', '.join(REPRESENTATIONS)}")
    return chosen


def _tasks(asked: str | None, rows: Sequence[Row]) -> list[str]:
    """The columns to attack, each of which must be learnable on train and askable on test."""
    if asked is None:
        return ["identity"]
    train, test = ([row for row in rows if row.split == split] for split in ("train", "test"))
    tasks = [name.strip() for name in asked.split(",") if name.strip()]
    known = sorted({name for row in rows for name in row.attributes})
    for task in tasks:
        if task not in known:
            raise UserError(f"--tasks {task}: no such column. The manifest has: {', '.join(known) or 'none'}")
        if not attackable(train, test, task):
            raise UserError(
                f"--tasks {task}: cannot be asked for; it needs two values or more in training rows, and test rows "
                "with none but those"
            )
    return tasks
