"""The ServerApp: wait for sites, agree the classes, build the networks, run the rounds, keep the run folder.

The server holds numbers, never pixels: nothing that is reachable from here can decode a picture (a test says so).
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from server.budget import open_budget
from server.grid import ArrivalGrid
from server.join import Roster, wait_for_nodes
from server.logs import show_log
from server.records import RoundRecord
from server.release import release_from_settings
from server.resume import Standing, changed_settings, open_run, standing_of
from server.runs import RunFolder
from server.status import RunStatus
from server.strategy import FedSPAct
from server.unblocked import UnblockedGrid
from spact_models.errors import RunStopped
from spact_models.exchange import snapshot
from spact_models.networks import build_networks, checkpoint_header
from spact_models.quieter import quieter
from spact_models.resident import peak_rss_mb
from spact_models.run_config import load_settings
from spact_models.settings import Settings

LOG = logging.getLogger("fedspact.server")
SPOOL = "spool"  # in the run folder: one round's updates, for the robust rules

app = ServerApp()


@dataclass(frozen=True)
class FederationResult:
    """A finished federation: the weights by wire name, and its rounds in order."""

    weights: dict[str, Tensor]
    classes: tuple[str, ...]
    rounds: tuple[RoundRecord, ...]
    checkpoint: Path  # of the last valid round
    seconds: float
    privacy: Mapping[str, object] = field(default_factory=dict)  # what was spent and how; empty: dp.unit = none

    @property
    def bytes_up_per_round(self) -> float:
        """Serialised bytes that all sites together sent in a training round, on average."""
        sent = [record.bytes_up for record in self.rounds if record.kind == "train"]
        return sum(sent) / len(sent)

    @property
    def evaluation(self) -> dict[str, float]:
        """The sites' own metrics of the last evaluated round; empty when nobody could evaluate."""
        evaluated = [record for record in self.rounds if record.kind == "evaluate" and not record.void]
        return dict(evaluated[-1].metrics) if evaluated else {}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """What ``flwr run`` calls."""
    show_log(
        str(context.run_config.get("watch.log_format", "text"))
    )  # first: it also shows what is wrong with the rest
    settings = load_settings(context.run_config)
    grid = UnblockedGrid(grid)
    if settings.task == "release":
        release_from_settings(grid, settings)
        return
    with open_run(settings) as folder:
        LOG.info("run folder: %s", folder.path)
        result = run_federation(grid, settings, folder)
        folder.write_summary(summarise(result, settings))
    LOG.info("done in %.0f s; the anonymizer is in %s", result.seconds, result.checkpoint)


def run_federation(
    grid: Grid,
    settings: Settings,
    run_folder: RunFolder,
    on_round: Callable[[RoundRecord], None] | None = None,
    quiet: bool = False,
) -> FederationResult:
    """The whole federation over any Grid: a SuperLink's, the Ray engine's, or the in-process one.

    Args:
        grid: where the sites are.
        settings: the run's.
        run_folder: a new one, which is begun here, or an interrupted run's reopened, which goes on after its last
            complete round (server/resume.py). The caller closes it.
        on_round: called after each round is on the disk.
        quiet: hold back Flower's own progress lines.

    Raises:
        UserError: the sites' class lists differ, the run folder cannot be written, or it is to be resumed with
            other settings.
        RunStopped: too few sites in time, or too many void rounds in a row.
    """
    started = time.monotonic()
    budget = open_budget(settings, run_folder.path)
    standing = _take_up(run_folder, settings)
    arrivals = ArrivalGrid(grid)
    roster = _gather(arrivals, settings, run_folder.federation, standing.classes)
    if not run_folder.begun:
        run_folder.begin(settings.flat())  # not before: a folder of a run that never began can be used again
    rounds = list(standing.rounds)
    with RunStatus(run_folder.path, settings, rounds) as status:

        def finished(record: RoundRecord) -> None:
            rounds.append(record)
            _keep(record, run_folder, strategy, settings, roster)
            if on_round is not None:
                on_round(record)

        spool = run_folder.path / SPOOL
        strategy = FedSPAct(
            settings,
            roster,
            _weights(standing, settings, roster),
            finished,
            spool=spool,
            observer=status,
            budget=budget,
        )
        arrivals.limit_seconds, arrivals.name = strategy.deadline_seconds, roster.name
        with quiet_flower() if quiet else nullcontext():
            strategy.start(
                arrivals,
                strategy.initial_arrays(),
                num_rounds=strategy.go_on(standing),
                timeout=settings.rounds.timeout_seconds,
            )
    seconds = sum(record.seconds for record in standing.rounds) + time.monotonic() - started
    result = _result(strategy, roster.classes, rounds, run_folder, seconds)
    return result if budget is None else replace(result, privacy=budget.told())


def _take_up(folder: RunFolder, settings: Settings) -> Standing:
    """Where the run stands: at its beginning, or where it was interrupted."""
    if not folder.begun:
        return Standing()
    changed = changed_settings(folder.settings(), settings)
    standing = standing_of(folder, settings)
    shutil.rmtree(folder.path / SPOOL, ignore_errors=True)
    folder.note_resumed(settings.flat(), standing.trained, changed)
    LOG.info("%s: goes on after round %d of %d", folder.path, standing.trained, settings.total_rounds)
    return standing


def _weights(standing: Standing, settings: Settings, roster: Roster) -> Mapping[str, Tensor]:
    """The last valid round's weights, or the first ones, which the seed decides."""
    if standing.weights is not None:
        return standing.weights
    networks = build_networks(settings, roster.classes)
    return snapshot(networks.anonymizer, networks.action)


def _keep(record: RoundRecord, folder: RunFolder, strategy: FedSPAct, settings: Settings, roster: Roster) -> None:
    """Bring a finished round to the disk, in an order in which a crash between two steps loses at most this round."""
    if strategy.teacher is not None:
        folder.save_teacher({name: torch.from_numpy(array.numpy()) for name, array in strategy.teacher.items()})
    if record.kind == "train" and not record.void:
        folder.save_state(record, strategy.server_state())
        details = {"round": record.round, "phase": record.phase, "federation": folder.federation}
        header = checkpoint_header(settings, roster.classes, **details)
        folder.save_checkpoint(record.round, strategy.weights, header)
    folder.record(record)


def summarise(result: FederationResult, settings: Settings) -> dict[str, Any]:
    """What the server can say in ``summary.json``; who judges the anonymizer fills in ``utility`` and ``attack``."""
    sites = {site.name for record in result.rounds for site in record.sites}
    return {
        "sites": len(sites),
        "rounds": settings.total_rounds,
        "seed": settings.seed,
        "preset": settings.preset,
        "device": "cpu",  # the server's own work: a mean and a step
        "seconds": round(result.seconds, 3),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "bytes_up_per_round": round(result.bytes_up_per_round),
        "utility": dict.fromkeys(("raw", "downsample4x", "difference1bit", "anonymized")),
        "attack": {},
        "evaluation": result.evaluation,
        **({"privacy": dict(result.privacy)} if result.privacy else {}),
    }


def quiet_flower() -> AbstractContextManager[None]:
    """Only Flower's warnings inside; its level is put back afterwards."""
    return quieter("flwr", logging.WARNING)


def _gather(grid: Grid, settings: Settings, federation: str, classes: Sequence[str]) -> Roster:
    """Wait for the sites, meet them, agree the classes."""
    rounds = settings.rounds
    nodes = wait_for_nodes(grid, rounds.min_sites, rounds.timeout_seconds)
    if len(nodes) < rounds.min_sites:
        raise RunStopped(
            f"{len(nodes)} sites connected within rounds.timeout_seconds = {rounds.timeout_seconds:g} s, "
            f"rounds.min_sites = {rounds.min_sites} are needed. Start the missing SuperNodes, or lower that key."
        )
    roster = Roster(federation, settings.action_classes, rounds.timeout_seconds, classes)
    dropped = roster.meet(grid, nodes)
    if len(roster.cards) < rounds.min_sites:  # every round would be void: say so before anybody trains
        reasons = "; ".join(f"{drop.name}: {drop.reason}" for drop in dropped)
        raise RunStopped(
            f"{len(roster.cards) or 'none'} of the {len(nodes)} connected sites could join. {reasons}. "
            f"rounds.min_sites = {rounds.min_sites} are needed."
        )
    roster.agree()
    return roster


def _result(
    strategy: FedSPAct, classes: tuple[str, ...], rounds: list[RoundRecord], folder: RunFolder, seconds: float
) -> FederationResult:
    kept = list(folder.checkpoints().values())
    if not kept:
        raise RunStopped("every round was void: there is no checkpoint. The log names the reasons.")
    weights = {name: value.clone() for name, value in strategy.weights.items()}
    return FederationResult(weights, classes, tuple(rounds), kept[-1], seconds)
