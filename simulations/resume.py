"""``fedspact simulate --resume RUN``: everything comes from the run's own folder; the flags can only agree with it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.site import load_site
from client.video.rows import read_rows
from server.resume import changed_settings, reopen_run
from server.runs import RunFolder
from simulations.laboratory import DATA, Laboratory, settings_from
from simulations.partition import dealt_sites
from spact_models.errors import UserError


def reopen_laboratory(args: argparse.Namespace, shorthand: Mapping[str, Any]) -> Laboratory:
    """The laboratory of an interrupted simulation: its settings, its rows, its cache, its sites.

    Raises:
        UserError: there is no such run, it is complete, or a flag asks for something else than the run was begun with.
    """
    started = time.monotonic()
    for flag in ("views", "out"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag}: cannot be given with --resume: a resumed run keeps what its own folder holds.")
    path = Path(args.resume).expanduser().absolute()
    begun = RunFolder.open(path).settings()
    settings = settings_from(args, shorthand, begun)
    changed_settings(begun, settings)  # said before anything is touched
    run = reopen_run(path, settings.rounds.keep_checkpoints)
    files = dealt_sites(path)
    if not files:
        raise UserError(f"{path}: holds no simulated sites; only a run of `fedspact simulate` can be resumed so.")
    cache = args.cache or load_site(files[0]).cache
    judged = run.judged_at_end and not args.no_judge
    return Laboratory(settings, run, read_rows(path / DATA, must_exist=False), cache, started, judged=judged)
