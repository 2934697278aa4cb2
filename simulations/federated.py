"""``fedspact simulate``: N sites of one manifest train together, in this process or on Flower's simulation runtime."""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from client.app import make_app
from client.training import on_step
from client.video.rows import Row
from server.app import run_federation
from server.runs import RunFolder
from simulations.inprocess import InProcessGrid
from simulations.laboratory import (
    Laboratory,
    add_run_arguments,
    again,
    batches_of_run,
    finish,
    open_laboratory,
    settings_from,
)
from simulations.partition import SITES, deal_views, dealt_sites, partition, write_sites
from simulations.progress import progress_bar
from simulations.resume import reopen_laboratory
from spact_models.errors import RunStopped, UserError
from spact_models.interrupted import as_typed, go_on_with
from spact_models.seeds import pick_device
from spact_models.settings import Settings
from spact_models.workshop import Workshop

ENGINES = ("inprocess", "ray")
MOST_AT_ONCE = 4  # sites with cores of their own, unless the settings say more: each has its networks in memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact simulate``."""
    add_run_arguments(parser, resumable=True)
    parser.add_argument("--sites", type=int, metavar="N", help="number of simulated sites (simulation.sites)")
    parser.add_argument(
        "--partition-by",
        metavar="COLUMN",
        help="iid, site, source, action or an attribute column (simulation.partition_by)",
    )
    parser.add_argument(
        "--engine", choices=ENGINES, default="inprocess", help="default: %(default)s; ray: Flower's runtime"
    )


def run(args: argparse.Namespace) -> int:
    """Deal the manifest out, train, judge, write the run folder."""
    shorthand = {"simulation.sites": args.sites, "simulation.partition_by": args.partition_by}
    chosen = {key: value for key, value in shorthand.items() if value is not None}
    if args.resume is not None:
        lab = reopen_laboratory(args, chosen)
    else:
        refuse_local_statistics(settings_from(args, chosen))
        lab = open_laboratory(args, chosen)
    with go_on_with(lambda: resume_words(lab)):
        simulate(lab, args.engine)
        finish(lab, sites=lab.settings.simulation.sites, kind="federated", judged=lab.judged)
    return 0


def resume_words(lab: Laboratory) -> str:
    """How to go on with an interrupted simulation."""
    return f"go on with: fedspact simulate --resume {as_typed(lab.run.path)}" if lab.run.begun else again(lab)


def refuse_local_statistics(settings: Settings) -> None:
    """A simulated federation ends in an anonymizer that is used and judged here, which BatchNorm does not allow.

    Raises:
        UserError: ``networks.norm = batch``.
    """
    if settings.networks.norm == "batch":
        raise UserError(
            "networks.norm = 'batch', cannot be judged after a federation: its statistics stay at the sites. "
            "Use networks.norm = 'group', or fedspact centralize."
        )


def simulate(lab: Laboratory, engine: str = "inprocess") -> None:
    """Train ``lab.settings`` on ``lab.rows`` and leave the run folder complete but for the judgement."""
    if lab.run.begun:
        site_files = dealt_sites(lab.run.path)
    else:
        site_files = deal_out(lab.run.path, lab.rows, lab.settings, lab.cache_folder, lab.views)
    if engine == "ray":
        _on_ray(lab.settings, site_files, lab.run)
    else:
        _in_process(lab.settings, site_files, lab.run)


def deal_out(
    folder: Path, rows: Sequence[Row], settings: Settings, cache: Path, views: Sequence[Row] | None = None
) -> list[Path]:
    """Write the simulated sites' files under ``folder/sites``."""
    config = settings.simulation
    shares = partition(rows, config, settings.seed)
    dealt = None if views is None else deal_views(views, config.sites, settings.seed)
    return write_sites(folder / SITES, shares, config.unlabelled_sites, cache, dealt, settings.secure.aggregation)


def sites_at_once(settings: Settings, sites: int, device: torch.device) -> int:
    """How many sites of a simulation work at the same time in this process.

    One more than there are cores where the sites would not come out even: three share two cores in one and a half
    turns, two and then one need two.
    """
    if settings.simulation.sites_at_once:
        return settings.simulation.sites_at_once
    alone = device.type != "cpu" or settings.speed.compile or settings.memory.budget_gib > 0
    if alone:
        return 1
    turn = min(sites, MOST_AT_ONCE, torch.get_num_threads())
    return turn + (1 if sites % turn else 0)


def _in_process(settings: Settings, site_files: Sequence[Path], run: RunFolder) -> None:
    nodes = [{"site": str(file)} for file in site_files]
    device = pick_device(settings.device)
    stop, counting = threading.Event(), threading.Lock()
    with (
        progress_bar("train", "step", batches_of_run(settings, len(nodes))) as bar,
        Workshop(device, stop.set, sites_at_once(settings, len(nodes), device)) as workshop,
    ):

        def step() -> None:
            if stop.is_set():  # the run has failed, or the user interrupted it, while this site worked beside it
                raise KeyboardInterrupt
            with counting:
                bar.update()

        def begins(node: int, work: str) -> None:
            bar.set_postfix_str(f"site {node}/{len(nodes)} {work}")

        grid = InProcessGrid(make_app(), nodes, settings.flat(), begins, workshop)
        token = on_step.set(step)
        try:
            run_federation(grid, settings, run, quiet=True)
        finally:
            on_step.reset(token)


def _on_ray(settings: Settings, site_files: Sequence[Path], run: RunFolder) -> None:
    """The same apps on Flower's simulation runtime; each ClientApp gets one core, and a GPU where it trains on one."""
    gpu = pick_device(settings.device).type == "cuda"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice about GPUs not asked for
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    failure: list[Exception] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001
        try:
            run_federation(grid, settings, run)
        except (UserError, RunStopped) as error:  # the runtime would wrap it in an error of its own
            failure.append(error)

    client = make_app(settings.flat(), [str(file) for file in site_files])
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=len(site_files),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": float(gpu)}},
    )
    if failure:
        raise failure[0]
