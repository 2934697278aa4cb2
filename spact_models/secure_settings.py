"""The section ``secure``: whether the server sees single updates, and what secure aggregation cannot go with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spact_models.rules import refuse

if TYPE_CHECKING:
    from spact_models.settings import Settings


@dataclass(frozen=True)
class SecureConfig:
    """Secure aggregation: the server gets the sum of the sites' updates and no single one (docs/privacy.md)."""

    aggregation: bool = False
    threshold: float = 0.66  # of the holders of a secret, to open it; more than half in any case. Higher: fewer sites
    # may be lost in a round, and more would have to conspire with the server
    neighbours: int = 0  # with how many others a site agrees masks; 0 = all. For hundreds of sites: 40 and more
    value_bound: float = 1.0  # a coordinate of an update is clipped to it; strategy.norm_bound or dp.clip_norm, where
    # one is set, counts instead: no coordinate is longer than the whole
    stage_seconds: float = 300.0  # how long a site may take to answer one of the four short messages

    def __post_init__(self) -> None:
        inside = 0.5 <= self.threshold <= 1
        refuse(not inside, f"threshold = {self.threshold!r}, must be from 0.5 to 1, for example 0.66")
        refuse(
            self.neighbours < 0 or 0 < self.neighbours < 4,
            f"neighbours = {self.neighbours!r}, must be 0 (all) or at least 4, for example 40",
        )
        for name in ("value_bound", "stage_seconds"):
            value = getattr(self, name)
            refuse(not (math.isfinite(value) and value > 0), f"{name} = {value!r}, must be above 0")


def check_secure(settings: Settings) -> None:
    """What a sum whose parts nobody sees cannot go with.

    Raises:
        UserError: naming the key, why, and what to set instead.
    """
    if not settings.secure.aggregation:
        return
    on = "secure.aggregation = true"
    refuse(
        settings.strategy.weighting != "equal",
        f"strategy.weighting = {settings.strategy.weighting!r}, cannot go with {on}: who decides what a site weighs "
        "can weigh all others with 0. Use strategy.weighting = 'equal'.",
    )
    refuse(
        settings.strategy.aggregation != "mean",
        f"strategy.aggregation = {settings.strategy.aggregation!r}, cannot go with {on}: a robust rule compares single "
        "updates, which nobody sees. Use strategy.aggregation = 'mean', or go without secure aggregation.",
    )
    refuse(
        settings.wire.dtype == "int8",
        f"wire.dtype = 'int8', cannot go with {on}: masked updates travel as 32-bit numbers. Use wire.dtype = "
        "'float16' (it is then not used).",
    )
    refuse(
        settings.rounds.min_sites < 2,
        f"rounds.min_sites = {settings.rounds.min_sites}, must be at least 2 with {on}: the sum of one site's update "
        "is that update. Use rounds.min_sites = 3 or more; with 2, each of the two can subtract its own.",
    )
