"""Where an interrupted run goes on: after its last complete round, with everything that the next one needs.

A round is complete when its checkpoint has its name; a void one, which has none, when its line is in
``metrics.jsonl``. So a server may be killed at any moment and loses at most the round that it was in. Weights come
from the checkpoint, the server optimizer's tensors and the round's line from the file beside it, the teacher from its
own, the class list from the checkpoint's header, the count of void rounds from the lines. The federation's id stays,
so the sites find their own state, and each plays the lost round again from the state before it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from server.records import RoundRecord
from server.runs import SETTINGS, SUMMARY, RunFolder, default_run_path
from spact_models.checkpoint import load_checkpoint
from spact_models.errors import UserError
from spact_models.exchange import ACTION
from spact_models.run_config import load_settings
from spact_models.settings import Scalar, Settings

LOG = logging.getLogger("fedspact.server")
MAY_CHANGE = (  # how a run is kept going, not what it learns; a key or a whole section
    "run_dir", "resume", "device", "watch.", "rounds.timeout_seconds", "rounds.min_sites", "rounds.max_void_rounds",
    "rounds.keep_checkpoints", "rounds.deadline", "rounds.deadline_factor", "rounds.deadline_quantile",
    "rounds.deadline_least_seconds", "simulation.sites_at_once",
)  # fmt: skip
STATELESS = ("fedavg", "fedprox")  # plain SGD: the optimizer remembers nothing


@dataclass(frozen=True)
class Standing:
    """How far a run has come."""

    trained: int = 0  # the last complete train round, void ones included
    void_rounds: int = 0  # in a row, up to there
    weights: Mapping[str, Tensor] | None = None  # None: no valid round yet, the first weights are still the ones
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    teacher: Mapping[str, Tensor] | None = None
    classes: tuple[str, ...] = ()
    rounds: tuple[RoundRecord, ...] = ()


def open_run(settings: Settings) -> RunFolder:
    """The run folder that the settings ask for: a new one, or with ``resume`` the one of an interrupted run.

    With ``resume`` and a folder in which no run has begun yet, the run begins: a service may always say ``resume``.

    Raises:
        UserError: ``resume`` without ``run_dir``; the run is complete; the folder holds something else.
    """
    path, keep = default_run_path(settings.run_dir), settings.rounds.keep_checkpoints
    if not settings.resume:
        return RunFolder(path, keep)
    if not settings.run_dir:
        raise UserError("resume = True, needs run_dir: the folder of the run to go on with")
    if not (path / SETTINGS).exists():
        LOG.warning("run folder %s: no run has begun there; this one begins", path)
        return RunFolder(path, keep)
    return reopen_run(path, keep)


def reopen_run(path: Path, keep_checkpoints: int) -> RunFolder:
    """An interrupted run's folder.

    Raises:
        UserError: there is none, its run is complete, or another process writes to it.
    """
    if (path / SUMMARY).exists():
        raise UserError(f"run folder {path}: its run is complete ({SUMMARY} is there); nothing is left to resume.")
    return RunFolder.reopen(path, keep_checkpoints)


def changed_settings(begun: Mapping[str, Scalar], settings: Settings) -> dict[str, tuple[Scalar, Scalar]]:
    """Key -> (before, now) of the settings that may change between two parts of one run, and did.

    Raises:
        UserError: another one differs; the first of them is named.
    """
    before, now = load_settings(begun).flat(), settings.flat()
    differing = {key: (before[key], now[key]) for key in now if before[key] != now[key]}
    for key, (old, new) in differing.items():
        if not key.startswith(tuple(each for each in MAY_CHANGE if each.endswith("."))) and key not in MAY_CHANGE:
            raise UserError(
                f"{key} = {new!r}, but the run to resume was begun with {old!r}: it would no longer be the same run. "
                f"Set {key} back, or begin a new run in another run_dir."
            )
    return differing


def standing_of(folder: RunFolder, settings: Settings) -> Standing:
    """Read where a reopened run stands, and bring its ``metrics.jsonl`` in line with its checkpoints.

    Raises:
        UserError: a checkpoint cannot be read, or something that the settings need beside it is missing.
    """
    records = [RoundRecord.from_json(line) for line in folder.history()]
    newest = max(folder.checkpoints(), default=0)
    optimizer: Mapping[str, Tensor] = {}
    weights, classes = None, ()
    if newest:
        checkpoint = load_checkpoint(folder.checkpoint_path(newest))
        weights, classes = checkpoint.tensors, tuple(checkpoint.header["classes"])
        optimizer, record = _beside(folder, settings, newest)
        if record is not None and not _has(records, newest):  # killed between the checkpoint and its line
            folder.record(record)
            records.append(record)
    kept = _up_to(records, newest)
    if len(kept) < len(records):
        LOG.warning("%s: %d rounds after round %d have no checkpoint; they are played again", folder.path,
                    len(records) - len(kept), newest)  # fmt: skip
        folder.cut_history(kept)
    trained = [record for record in kept if record.kind == "train"]
    last = max((record.round for record in trained), default=0)
    void = 0
    for record in trained:
        void = void + 1 if record.void else 0
    return Standing(last, void, weights, optimizer, _teacher(folder, settings, last), classes, tuple(kept))


def _beside(
    folder: RunFolder, settings: Settings, server_round: int
) -> tuple[Mapping[str, Tensor], RoundRecord | None]:
    path = folder.state_path(server_round)
    if path.exists():
        state = load_checkpoint(path)
        return state.tensors, RoundRecord.from_json(state.header["record"])
    if settings.strategy.name not in STATELESS:
        raise UserError(
            f"{path}: missing, and strategy.name = {settings.strategy.name!r} cannot go on without its moments. Remove "
            f"{folder.checkpoint_path(server_round).name} to go on from the round before."
        )
    return {}, None


def _has(records: list[RoundRecord], server_round: int) -> bool:
    return any(record.kind == "train" and record.round == server_round for record in records)


def _up_to(records: list[RoundRecord], newest: int) -> list[RoundRecord]:
    """The rounds before the first valid train round whose checkpoint is gone."""
    for place, record in enumerate(records):
        if record.kind == "train" and not record.void and record.round > newest:
            return records[:place]
    return records


def _teacher(folder: RunFolder, settings: Settings, trained: int) -> Mapping[str, Tensor] | None:
    """f_T after warm-up, once a minimax round is complete; before, the next one takes it from the weights."""
    if trained <= settings.rounds.warmup:
        return None
    kept = folder.teacher()
    if kept is None:
        raise UserError(
            f"{folder.path}: the teacher (f_T as it was after warm-up) is missing, and minimax rounds need it. Begin a "
            "new run in another run_dir."
        )
    return {name: value for name, value in kept.tensors.items() if name.startswith(ACTION)}
