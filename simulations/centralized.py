"""``fedspact centralize``: the same moves and the same virtual rounds on the pooled rows, without a federation.

It calls the site's own local round, so that one site federated with plain averaging and a centralised run are the
same computation; a test holds them together.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from client.footage import open_footage
from client.site import load_site
from client.state import LocalState
from client.training import RoundTask, local_round, on_step
from client.video.loader import ClipLoader
from client.video.rows import class_names
from server.records import RoundRecord, SiteRecord
from server.runs import RunFolder
from simulations.federated import deal_out
from simulations.laboratory import Laboratory, add_run_arguments, again, batches_of_run, finish, open_laboratory
from simulations.progress import progress_bar
from spact_models.errors import UserError
from spact_models.exchange import ACTION, snapshot
from spact_models.interrupted import as_typed, go_on_with
from spact_models.networks import Networks, buffers_of, build_networks, checkpoint_header
from spact_models.seeds import pick_device
from spact_models.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact centralize``."""
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Pool the manifest, train, judge, write the run folder."""
    lab = open_laboratory(args)
    with go_on_with(lambda: _onward(lab)):
        centralize(lab)
        finish(lab, sites=1, kind="centralized", judged=lab.judged)
    return 0


def _onward(lab: Laboratory) -> str:
    run = as_typed(lab.run.path)
    if not lab.run.begun:
        return again(lab)
    if lab.settings.total_rounds in lab.run.checkpoints():
        return f"it is trained; judge it with: fedspact evaluate {run}"
    return f"a centralized run cannot be resumed: begin anew with another --out, or remove {run}"


def centralize(lab: Laboratory) -> None:
    """Train on the pooled rows as if they were one site, and leave the run folder complete but for the judgement."""
    pooled = replace(lab.settings.simulation, sites=1, partition_by="iid", unlabelled_sites=0)
    settings = replace(lab.settings, simulation=pooled)
    play_alone(lab, settings, deal_out(lab.run.path, lab.rows, settings, lab.cache_folder, lab.views)[0])


def play_alone(lab: Laboratory, settings: Settings, site_file: Path) -> None:
    """Play every round at one site, which hears of no other, as a federation of that site alone would.

    The action set is that of all rows, so that a site which lacks some actions has the same networks as the others.

    Raises:
        UserError: fewer than two actions, or a site file, rows or videos that cannot be used.
    """
    site = load_site(site_file)
    classes = list(settings.action_classes) or class_names(lab.rows)
    if len(classes) < 2:
        raise UserError(
            f"the manifest names {len(classes)} actions, must be at least 2; set action.classes or label it"
        )
    device = pick_device(settings.device)
    networks = build_networks(settings, classes)
    networks.anonymizer.to(device)
    networks.action.to(device)
    loader = open_footage(site, settings).loader(settings, classes, networks.anonymizer.history)
    lab.run.begin(settings.flat())
    with progress_bar("train", "step", batches_of_run(settings, 1)) as bar:
        token = on_step.set(bar.update)
        try:
            _play_rounds(lab.run, settings, site.name, networks, loader)
        finally:
            on_step.reset(token)


def _play_rounds(run: RunFolder, settings: Settings, site_name: str, networks: Networks, loader: ClipLoader) -> None:
    weights = snapshot(networks.anonymizer, networks.action)
    state, teacher = LocalState(), None
    for number in range(1, settings.total_rounds + 1):
        phase = settings.phase(number)
        if phase == "minimax" and teacher is None:
            teacher = {name: value for name, value in weights.items() if name.startswith(ACTION)}
        task = RoundTask(number, phase, weights, teacher)
        result = local_round(task, settings, site_name, networks, loader, state)
        weights, state = result.weights, result.state
        header = checkpoint_header(settings, loader.classes, round=number, phase=phase)
        run.save_checkpoint(number, {**weights, **buffers_of(networks)}, header)
        alone = SiteRecord(1, site_name, result.metrics, bytes_down=0, bytes_up=0)
        seconds = result.metrics["seconds"]
        run.record(RoundRecord("train", number, phase, False, "", result.metrics, sites=(alone,), seconds=seconds))
