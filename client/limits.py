"""What a site's own people allow: limits on its machine, and runs that they refuse.

A limit makes a round smaller or puts it off; a refusal keeps the site out of the run. Both are answered with an error
reply that holds the reason, and the run goes on without the site. The checks read what the run *says* of itself; a
server that lies about it is a matter of ``docs/privacy.md``, not of this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, time
from typing import Any

import torch

from client.egress import METRICS
from spact_models.errors import UserError
from spact_models.rules import require
from spact_models.settings import Settings

BRANCHES = ("anonymizer", "action")  # f_A and f_T: the only networks that ever leave
NEEDED_METRICS = ("examples", "examples.anonymizer", "examples.action")  # without them a reply is not valid
HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True)
class Limits:
    """How much of the machine a run may have."""

    batch_clips: int = 0  # clips a batch; a run that asks for more plays smaller batches here. 0 = as the run asks
    batch_views: int = 0  # the same for the pairs of views
    hours: str = ""  # "20:00-06:00", local time: training, evaluation and judgements only then; empty = always
    gpu_memory_share: float = 1.0  # of the GPU's memory that this process may take; torch refuses above it

    def __post_init__(self) -> None:
        for name in ("batch_clips", "batch_views"):
            value = getattr(self, name)
            require(value == 0 or value >= 2, name, value, "must be at least 2, or 0 (no limit)")
        share = self.gpu_memory_share
        require(0 < share <= 1, "gpu_memory_share", share, "must be above 0 and at most 1")
        if self.hours:
            matched = HOURS.fullmatch(self.hours)
            rule = 'must be "HH:MM-HH:MM" in quotes, two different times of the day, such as "20:00-06:00"'
            require(matched is not None and self._span()[0] != self._span()[1], "hours", self.hours, rule)

    def _span(self) -> tuple[time, time]:
        begin, _, end = self.hours.partition("-")
        return time.fromisoformat(begin), time.fromisoformat(end)

    def open_at(self, now: datetime) -> bool:
        """Whether ``now`` (local time) lies in the hours; a span that begins later than it ends passes midnight."""
        if not self.hours:
            return True
        begin, end = self._span()
        clock = now.time()
        return begin <= clock < end if begin < end else clock >= begin or clock < end

    def check_hours(self, now: datetime) -> None:
        """Raises UserError outside of the hours."""
        if not self.open_at(now):
            raise UserError(f"this site takes part only in its hours, {self.hours} local time; it is {now:%H:%M}")

    def bounded(self, settings: Settings) -> Settings:
        """The run's settings with batches no larger than the site allows."""
        batch = settings.batch
        clips = min(batch.clips, self.batch_clips or batch.clips)
        views = min(batch.views, self.batch_views or batch.views)
        return replace(settings, batch=replace(batch, clips=clips, views=views))

    def apply_to(self, device: torch.device) -> None:
        """Hold this process to its share of the GPU's memory; nothing to do on a CPU."""
        if device.type == "cuda" and self.gpu_memory_share < 1:
            # torch takes no device without a number here
            number = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.set_per_process_memory_fraction(self.gpu_memory_share, number)


@dataclass(frozen=True)
class Refusals:
    """Runs that the site takes no part in. The defaults refuse none."""

    min_sites: int = 1  # refuse a run whose rounds count with fewer sites than this
    max_rounds: int = 0  # refuse a run of more rounds; 0 = any number
    branches: tuple[str, ...] = BRANCHES  # refuse a run that wants parameters of another network
    metrics: tuple[str, ...] = METRICS  # a figure that is not here stays; a judgement that needs it is refused
    require_secure_aggregation: bool = False  # refuse a run whose server sees this site's own update
    min_noise: float = 0.0  # refuse a run with less noise (z, of differential privacy); 0 = none is demanded

    def __post_init__(self) -> None:
        require(self.min_sites >= 1, "min_sites", self.min_sites, "must be at least 1")
        require(self.max_rounds >= 0, "max_rounds", self.max_rounds, "must be at least 1, or 0 (any number)")
        require(0 <= self.min_noise < float("inf"), "min_noise", self.min_noise, "must be at least 0")
        for name, known in (("branches", BRANCHES), ("metrics", METRICS)):
            value = getattr(self, name)
            odd = [entry for entry in value if entry not in known]
            require(bool(value) and not odd, name, list(value), f"must be a list out of: {', '.join(known)}")
        missing = [name for name in NEEDED_METRICS if name not in self.metrics]
        rule = f"must include {', '.join(NEEDED_METRICS)}: without its counts no reply of the site is valid"
        require(not missing, "metrics", list(self.metrics), rule)

    def check_run(self, settings: Settings, server_round: int = 0) -> None:
        """Whether the site takes part in a run of these settings, in this round.

        Raises:
            UserError: it does not; the message names the site's rule and the run's value.
        """
        if self.require_secure_aggregation and not settings.secure.aggregation:
            raise UserError(
                "refused: this site demands secure aggregation (refuse.require_secure_aggregation), the run has "
                "secure.aggregation = false: the server would see this site's own update"
            )
        noise = settings.dp.noise_multiplier if settings.dp.on else 0.0
        if noise < self.min_noise:
            raise UserError(
                f"refused: this site demands noise of at least {self.min_noise:g} (refuse.min_noise), the run has "
                f"{noise:g} (dp.unit = {settings.dp.unit!r}, dp.noise_multiplier)"
            )
        if settings.rounds.min_sites < self.min_sites:
            raise UserError(
                f"refused: rounds.min_sites = {settings.rounds.min_sites}, this site takes part only where a round "
                f"needs at least {self.min_sites} sites (refuse.min_sites)"
            )
        rounds = max(settings.total_rounds, server_round)
        if self.max_rounds and rounds > self.max_rounds:
            raise UserError(
                f"refused: the run has {rounds} rounds, this site takes part in at most {self.max_rounds} "
                "(refuse.max_rounds)"
            )

    def check_names(self, leaving: Iterable[str]) -> None:
        """Raises UserError when the run wants a parameter of a network that the site does not give."""
        odd = sorted({name.partition(".")[0] for name in leaving} - set(self.branches))
        if odd:
            raise UserError(
                f"refused: the run wants parameters of {', '.join(odd)}, this site gives only those of "
                f"{', '.join(self.branches)} (refuse.branches); wire.parameters limits what a run wants"
            )

    def check_judgement(self, figures: Sequence[str]) -> None:
        """Raises UserError when a judgement would tell a figure that the site keeps to itself."""
        kept = [name for name in figures if name not in self.metrics]
        if kept:
            raise UserError(f"refused: this site does not tell {', '.join(kept)} (refuse.metrics)")

    def told(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The figures that the site tells."""
        return {name: value for name, value in figures.items() if name in self.metrics}


def read_section(kind: type[Any], section: str, tree: object, unknown: Any) -> Any:
    """``limits`` or ``refuse`` of a site file as its dataclass, each value of its default's type.

    Args:
        unknown: called with the full key and the known ones when a key is not known; raises.
    """
    require(isinstance(tree, dict), section, tree, "must hold keys and values, indented below it")
    assert isinstance(tree, dict)
    known = {spec.name: spec.default for spec in fields(kind)}
    values = {}
    for key, value in tree.items():
        if key not in known:
            unknown(f"{section}.{key}", [f"{section}.{name}" for name in known])
        values[key] = _like(f"{section}.{key}", value, known[key])
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{section}.{error}") from None


def _like(key: str, value: Any, default: object) -> Any:
    if isinstance(default, bool):
        require(isinstance(value, bool), key, value, "must be true or false")
        return value
    if isinstance(default, tuple):
        fine = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
        require(fine, key, value, "must be a list of names, such as [anonymizer, action]")
        return tuple(value)
    if isinstance(default, str):
        require(isinstance(value, str), key, value, "must be a text; put it in quotes")
        return value
    whole = isinstance(default, int)
    fine = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    require(fine and abs(value) < 2**53, key, value, "must be a whole number" if whole else "must be a number")
    return value if whole else float(value)
