"""The section ``dp``: which unit is protected, how hard it is clipped, how much noise, and what the run may spend.

What cannot hold together with a guarantee is refused here, before anybody trains, with what to change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spact_models.errors import UserError
from spact_models.rules import refuse

if TYPE_CHECKING:
    from spact_models.settings import Settings

UNITS = ("none", "site", "videos")
ACCOUNTANTS = ("rdp", "prv")


@dataclass(frozen=True)
class DpConfig:
    """Differential privacy (docs/privacy.md)."""

    unit: str = "none"  # site: for many sites and few weights | videos: groups of a site's videos, for any number
    clip_norm: float = 1.0  # C: L2 of a site's whole update (site), or of one group's gradient (videos)
    noise_multiplier: float = 1.0  # z: the noise's standard deviation in clip norms; below 0.5 epsilon means little
    delta: float = 1e-5  # the chance that the bound fails; must be below 1 / number of units
    epsilon_budget: float = 8.0  # the run stops before a release that would take more
    group_videos: int = 4  # videos: how many videos a group holds on average; a pair of views needs two
    sampling_rate: float = 0.25  # videos: the chance of each group to be in a step
    adaptive_quantile: float = 0.0  # site: the clip norm follows this quantile of the updates' lengths; 0 = it stays
    adaptive_rate: float = 0.2  # site: of that, a round: the norm moves by at most exp(rate)
    accountant: str = "rdp"  # videos: Opacus' rdp, or prv, which is tighter and slower

    def __post_init__(self) -> None:
        refuse(self.unit not in UNITS, f"unit = {self.unit!r}, must be one of: {', '.join(UNITS)}")
        refuse(
            self.accountant not in ACCOUNTANTS,
            f"accountant = {self.accountant!r}, must be one of: {', '.join(ACCOUNTANTS)}",
        )
        for name, rule in (
            ("clip_norm", "must be above 0, for example 1.0"),
            ("noise_multiplier", "must be above 0: without noise nothing is private; for example 1.0"),
            ("epsilon_budget", "must be above 0, for example 8.0"),
        ):
            value = getattr(self, name)
            refuse(not (math.isfinite(value) and value > 0), f"{name} = {value!r}, {rule}")
        refuse(not 0 < self.delta < 1, f"delta = {self.delta!r}, must be above 0 and below 1, for example 1e-05")
        refuse(self.group_videos < 1, f"group_videos = {self.group_videos!r}, must be at least 1, for example 4")
        refuse(
            not 0 <= self.adaptive_quantile < 1,
            f"adaptive_quantile = {self.adaptive_quantile!r}, must be above 0 and below 1, for example 0.5, or 0 (off)",
        )
        follow = self.adaptive_rate
        refuse(not 0 < follow <= 1, f"adaptive_rate = {follow!r}, must be above 0 and at most 1, for example 0.2")
        rate = self.sampling_rate
        refuse(not 0 < rate <= 1, f"sampling_rate = {rate!r}, must be above 0 and at most 1, for example 0.25")

    @property
    def on(self) -> bool:
        return self.unit != "none"


def check_delta(delta: float, units: int, what: str) -> None:
    """UserError unless delta is below 1/units: at 1/units a mechanism may give one of them away whole."""
    if delta * units >= 1:
        raise UserError(
            f"dp.delta = {delta:g}, must be below 1 / {units} ({what}): a mechanism may give away a share delta of "
            f"them outright. Use dp.delta = {1 / (10 * units):.1g}"
        )


def check_dp(settings: Settings) -> None:
    """What a guarantee cannot go with.

    Raises:
        UserError: naming the key, why, and what to set instead.
    """
    dp = settings.dp
    if not dp.on:
        return
    on = f"dp.unit = {dp.unit!r}"
    refuse(
        settings.networks.norm == "batch",
        f"networks.norm = 'batch', cannot go with {on}: BatchNorm mixes the videos of a batch and keeps statistics "
        "that no clipping reaches. Use networks.norm = 'group'.",
    )
    refuse(
        settings.strategy.weighting != "equal",
        f"strategy.weighting = {settings.strategy.weighting!r}, cannot go with {on}: a site that weighs more than 1 "
        "moves the mean by more than its clip norm, and counts are private. Use strategy.weighting = 'equal'.",
    )
    refuse(
        settings.strategy.aggregation != "mean" and dp.unit == "site",
        f"strategy.aggregation = {settings.strategy.aggregation!r}, cannot go with {on}: the noise is measured for a "
        "mean, and one site can move another rule by more. Use strategy.aggregation = 'mean'.",
    )
    refuse(
        settings.rounds.evaluate_every > 0,
        f"rounds.evaluate_every = {settings.rounds.evaluate_every}, cannot go with {on}: what sites find on their "
        "private videos would leave without noise. Use rounds.evaluate_every = 0 (nothing is evaluated at the sites).",
    )
    refuse(
        settings.wire.dtype == "int8",
        f"wire.dtype = 'int8', cannot go with {on}: what its rounding leaves out travels with a later round, past the "
        "clip norm. Use wire.dtype = 'float16'.",
    )
    refuse(
        dp.unit == "videos" and settings.game.joint_step,
        f"game.joint_step = true, cannot go with {on}: each network's step is accounted with a sample of its own. "
        "Use game.joint_step = false.",
    )
    refuse(
        dp.unit == "videos" and dp.group_videos < 2,
        f"dp.group_videos = {dp.group_videos}, must be at least 2 with {on}: L_B compares videos inside a group. "
        "Use dp.group_videos = 4.",
    )
    refuse(
        dp.adaptive_quantile > 0 and dp.unit != "site",
        f"dp.adaptive_quantile = {dp.adaptive_quantile}, needs dp.unit = 'site': the norm follows the sites' whole "
        "updates. Use dp.adaptive_quantile = 0.",
    )
    refuse(
        dp.adaptive_quantile > 0 and settings.secure.aggregation,
        f"dp.adaptive_quantile = {dp.adaptive_quantile}, cannot go with secure.aggregation = true: the masks' ring is "
        "measured for one norm. Use dp.adaptive_quantile = 0.",
    )
    if dp.unit == "site":
        check_delta(dp.delta, settings.rounds.min_sites, "rounds.min_sites")
