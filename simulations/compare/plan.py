"""What a comparison is made of: its arms, its cells, and how many optimizer steps each of them may take.

A cell is one training run and its judgement, or one baseline's judgement: the unit that is run, kept and resumed.
Arms share what they can: the pooled rows are the same for every partition, and baselines are not trained at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from spact_models.errors import UserError
from spact_models.run_config import load_settings
from spact_models.settings import Scalar, Settings

CHOICE = ("seeds", "partitions", "arms", "baselines")  # which cells there are; the rest of a plan says what each one is
JUDGED = ("task", "attackers", "settings.judge.")  # beginnings of the keys that say who judges, and not what is trained
CENTRALIZED, FEDERATED, LOCAL, BASELINES = ARMS = ("centralized", "federated", "local-only", "baselines")


@dataclass(frozen=True)
class Steps:
    """Optimizer steps of each network in a whole run, over all sites."""

    anonymizer: int
    action: int
    privacy: int

    @property
    def total(self) -> int:
        return self.anonymizer + self.action + self.privacy


@dataclass(frozen=True)
class Cell:
    """One arm's run. ``arm``: centralized, federated, local-only, or the name of a baseline."""

    arm: str
    seed: int
    partition: str | None = None  # None: the arm is the same for every partition
    site: int | None = None  # local-only: which site, from 1

    @property
    def trained(self) -> bool:
        return self.arm in ARMS

    @property
    def name(self) -> str:
        """The cell's folder: ``federated-iid-seed0``, ``local-only-action_0.3-site2-seed1``, ``baseline-raw-seed0``."""
        parts = [self.arm if self.trained else f"baseline-{self.arm}"]
        if self.partition is not None:
            parts.append(re.sub(r"[^\w.+-]", "_", self.partition))
        if self.site is not None:
            parts.append(f"site{self.site}")
        return "-".join([*parts, f"seed{self.seed}"])


@dataclass(frozen=True)
class Plan:
    """Everything that decides a comparison's figures. Where all but ``CHOICE`` is the same, finished cells are kept."""

    manifest: str
    manifest_sha256: str
    views: str
    views_sha256: str
    sites: int
    seeds: tuple[int, ...]
    partitions: tuple[str, ...]
    arms: tuple[str, ...]
    baselines: tuple[str, ...]
    task: str
    attackers: tuple[str, ...]  # (): the preset's own set
    version: str  # of fedspact: cells of two versions are not compared with each other
    settings: Mapping[str, Scalar]  # flat; seed, sites and partition_by are each cell's own

    def to_json(self) -> dict[str, Any]:
        """As plain types, flat: one level of keys, so that the first difference can be named."""
        own = {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name != "settings"}
        lists = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
        return {**lists, **{f"settings.{key}": value for key, value in self.settings.items()}}

    def cells(self) -> list[Cell]:
        """Every cell, those that take longest first, so that the last ones to finish are short."""
        out: list[Cell] = []
        for seed in self.seeds:
            if CENTRALIZED in self.arms:
                out.append(Cell(CENTRALIZED, seed))
            if FEDERATED in self.arms:
                out.extend(Cell(FEDERATED, seed, partition) for partition in self.partitions)
        if LOCAL in self.arms:
            places = [(seed, partition) for seed in self.seeds for partition in self.partitions]
            out.extend(Cell(LOCAL, seed, name, site) for seed, name in places for site in range(1, self.sites + 1))
        if BASELINES in self.arms:
            out.extend(Cell(name, seed) for seed in self.seeds for name in self.baselines)
        return out

    def settings_of(self, cell: Cell) -> Settings:
        """The settings that a cell is trained and judged with.

        Centralized and local-only runs have no server, hence no pull towards its weights and no step of its own.
        """
        own: dict[str, Scalar] = {"seed": cell.seed, "simulation.sites": self.sites}
        if cell.partition is not None:
            own["simulation.partition_by"] = cell.partition
        settings = load_settings({**self.settings, **own})
        if cell.arm in (CENTRALIZED, LOCAL):
            settings = replace(settings, strategy=replace(settings.strategy, name="fedavg"))
        return pooled(settings, self.sites) if cell.arm == CENTRALIZED else settings

    def steps_of(self, cell: Cell) -> Steps | None:
        """Optimizer steps that the cell must take; None for a baseline."""
        if not cell.trained:
            return None
        return steps_of_run(self.settings_of(cell), self.sites if cell.arm == FEDERATED else 1)


@dataclass(frozen=True)
class Order:
    """What a process needs to know to make one cell. It crosses to that process pickled."""

    plan: Plan
    cell: Cell
    folder: Path  # the comparison's
    cache: Path  # decoded frames
    log: Path  # what the process says
    trained: Path | None = None  # another comparison, whose networks are judged instead of new ones


def pooled(settings: Settings, sites: int) -> Settings:
    """The run on pooled rows that takes as many steps as ``sites`` sites together, in the same number of rounds."""
    return replace(
        settings,
        simulation=replace(settings.simulation, sites=1, partition_by="iid"),
        warmup=replace(settings.warmup, steps=sites * settings.warmup.steps),
        game=replace(settings.game, catch_up_steps=sites * settings.game.catch_up_steps),
        rounds=replace(settings.rounds, cycles=sites * settings.rounds.cycles),
    )


def steps_of_run(settings: Settings, sites: int) -> Steps:
    """Optimizer steps of each network that all sites together take in a whole run, where every clip has a label."""
    rounds = settings.rounds
    warmup = sites * rounds.warmup * settings.warmup.steps
    moves = sites * rounds.minimax * rounds.cycles
    critics = sites * rounds.minimax * (settings.game.catch_up_steps + rounds.cycles * settings.game.critic_steps)
    action = sites * rounds.minimax * settings.game.catch_up_steps + moves if settings.game.joint_step else critics
    return Steps(anonymizer=warmup + moves, action=warmup + action, privacy=warmup + critics)


def parse_names(flag: str, text: str, known: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """``"a,b"`` -> ``("a", "b")``.

    Raises:
        UserError: none, one twice, or one that is not known.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if known is not None and name not in known:
            raise UserError(f"{flag} {name}: must be among {', '.join(known)}")
        if names.count(name) > 1:
            raise UserError(f"{flag} {text}: names {name} twice; once is enough")
    if not names:
        raise UserError(f"{flag} {text!r}: names nothing; give one or more, separated by commas")
    return names


def parse_seeds(text: str) -> tuple[int, ...]:
    """``"0,1,2"`` -> ``(0, 1, 2)``.

    Raises:
        UserError: something that is no whole number from 0, or one twice.
    """
    for name in (names := parse_names("--seeds", text)):
        if not name.isdecimal():
            raise UserError(f"--seeds {name}: must be a whole number from 0; give for example 0,1,2")
    return tuple(int(name) for name in names)
