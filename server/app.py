"""The ServerApp: wait for sites, agree the classes, build the networks, run the rounds, keep the run folder.

The server holds numbers, never pixels: nothing that is reachable from here can decode a picture (a test says so).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from server.grid import ArrivalGrid
from server.join import Roster, wait_for_nodes
from server.records import RoundRecord
from server.runs import RunFolder, default_run_path
from server.strategy import FedSPAct
from spact_models.errors import RunStopped, UserError
from spact_models.exchange import snapshot
from spact_models.networks import build_networks, checkpoint_header
from spact_models.run_config import load_settings
from spact_models.settings import Settings

LOG = logging.getLogger("fedspact.server")

app = ServerApp()


@dataclass(frozen=True)
class FederationResult:
    """A finished federation: the weights by wire name, and its rounds in order."""

    weights: dict[str, Tensor]
    classes: tuple[str, ...]
    rounds: tuple[RoundRecord, ...]
    checkpoint: Path  # of the last valid round
    seconds: float

    @property
    def bytes_up_per_round(self) -> float:
        """Array bytes that all sites together sent in a training round, on average."""
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
    _show_log()
    settings = load_settings(context.run_config)
    with RunFolder(default_run_path(settings.run_dir), settings.rounds.keep_checkpoints) as folder:
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
        run_folder: a new one; it is begun here, and closed by the caller.
        on_round: called after each round is on the disk.
        quiet: hold back Flower's own progress lines.

    Raises:
        UserError: the sites' class lists differ, or the run folder cannot be written.
        RunStopped: too few sites in time, or too many void rounds in a row.
    """
    started = time.monotonic()
    arrivals = ArrivalGrid(grid)
    roster = _gather(arrivals, settings, run_folder.federation)
    run_folder.begin(settings.flat())  # not before: a folder of a run that never began can be used again
    networks = build_networks(settings, roster.classes)
    rounds: list[RoundRecord] = []

    def finished(record: RoundRecord) -> None:
        rounds.append(record)
        if record.kind == "train" and not record.void:
            details = {"round": record.round, "phase": record.phase, "federation": run_folder.federation}
            header = checkpoint_header(settings, roster.classes, **details)
            run_folder.save_checkpoint(record.round, strategy.weights, header)
        run_folder.record(record)  # after the checkpoint: a round that has its line is complete
        if on_round is not None:
            on_round(record)

    strategy = FedSPAct(settings, roster, snapshot(networks.anonymizer, networks.action), finished)
    del networks  # the strategy has its own copy of their weights
    with quiet_flower() if quiet else nullcontext():
        strategy.start(
            arrivals,
            strategy.initial_arrays(),
            num_rounds=settings.total_rounds,
            timeout=settings.rounds.timeout_seconds,
        )
    return _result(strategy, roster.classes, rounds, run_folder, time.monotonic() - started)


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
        "peak_rss_mb": peak_rss_mb(),
        "bytes_up_per_round": round(result.bytes_up_per_round),
        "utility": dict.fromkeys(("raw", "downsample4x", "difference1bit", "anonymized")),
        "attack": {},
        "evaluation": result.evaluation,
    }


def peak_rss_mb() -> float:
    """This process' largest resident memory so far, in MB of 2^20 bytes; 0 on Windows."""
    if sys.platform == "win32":  # has no such counter in the standard library
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)  # macOS counts bytes, Linux KiB


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Only Flower's warnings inside; its level is put back afterwards."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _gather(grid: Grid, settings: Settings, federation: str) -> Roster:
    """Wait for the sites, meet them, agree the classes."""
    rounds = settings.rounds
    nodes = wait_for_nodes(grid, rounds.min_sites, rounds.timeout_seconds)
    if len(nodes) < rounds.min_sites:
        raise RunStopped(
            f"{len(nodes)} sites connected within rounds.timeout_seconds = {rounds.timeout_seconds:g} s, "
            f"rounds.min_sites = {rounds.min_sites} are needed. Start the missing SuperNodes, or lower that key."
        )
    roster = Roster(federation, settings.action_classes, rounds.timeout_seconds)
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


def _show_log() -> None:
    """Our lines on stderr, which Flower streams back to ``flwr run --stream``."""
    logger = logging.getLogger("fedspact")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logging.getLogger("flwr").addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Flower logs every exception of a ServerApp with its traceback; for a user's mistake the sentence is enough."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UserError | RunStopped):
        record.msg, record.args, record.exc_info, record.exc_text = "%s", (str(error),), None, None
    return True
