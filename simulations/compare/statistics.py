"""Verdicts: is one arm not worse than another, or ahead of it, on the same videos and with the same seeds?

A hit is 0 or 1 for one test video and one seed (a share where an arm is the mean of several sites). Arms are judged on
the same videos, so their hits are paired: a resample draws videos, and both arms answer for the same drawn ones.
Videos that are hard for every arm then cancel out of a difference, which makes its interval narrower than two
intervals held side by side. The interval speaks of other videos of this kind, not of other seeds: each seed's own
difference stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spact_models.learned import stopped_early
from spact_models.metrics import paired_bootstrap

Hits = NDArray[np.float64]  # (S, V): seeds, test videos

RESAMPLES = 4000
UTILITY_MARGIN, LEAKAGE_MARGIN = 0.01, 0.02  # evaluation.md: 1 point of utility, 2 points of leakage
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
BY_LOWER_BOUNDS = "holds, by lower bounds"  # a fresh network of some cell may find more with more steps


@dataclass(frozen=True)
class Difference:
    """One arm minus another, and what follows.

    ``holds`` is None where the 95 % interval lies on both sides of the bound: the data cannot tell. ``learned`` is what
    the least finished fresh network of either arm knew of its own training clips (None: not told, or of no matter).
    """

    difference: float
    low: float
    high: float
    per_seed: tuple[float, ...]
    margin: float
    holds: bool | None
    learned: float | None = None

    @property
    def verdict(self) -> str:
        if self.holds and stopped_early(self.learned):
            return BY_LOWER_BOUNDS
        return UNDECIDED if self.holds is None else HOLDS if self.holds else FAILS

    def to_json(self) -> dict[str, Any]:
        """As plain types."""
        return {
            "difference": self.difference,
            "low": self.low,
            "high": self.high,
            "per_seed": list(self.per_seed),
            "margin": self.margin,
            "holds": self.holds,
            "learned": self.learned,
            "verdict": self.verdict,
        }


def compare_hits(ours_SV: Hits, theirs_SV: Hits, margin: float, more_is_better: bool) -> Difference:
    """With a margin: ours is not worse by as much as that (non-inferiority). With margin 0: ours is better.

    It holds when the whole interval lies on the good side of the bound, and does not when none of it does.

    Raises:
        ValueError: the arms have not answered for the same seeds and videos.
    """
    if ours_SV.shape != theirs_SV.shape:
        raise ValueError(f"hits of {ours_SV.shape} and {theirs_SV.shape} (seeds, videos) cannot be paired")
    difference, low, high = paired_bootstrap(ours_SV, theirs_SV, RESAMPLES)
    worst, best = (low, high) if more_is_better else (-high, -low)  # of "better by so much"
    holds = True if worst > -margin else False if best <= -margin else None
    per_seed = tuple(float(value) for value in (ours_SV - theirs_SV).mean(axis=1))
    return Difference(difference, low, high, per_seed, margin, holds)
