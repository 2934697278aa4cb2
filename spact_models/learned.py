"""Whether a judge's fresh network had learned its own training clips when its steps ended.

One that had not may find more with more steps: of a leakage its figure is the least that is there.
"""

from __future__ import annotations

from collections.abc import Iterable

LEARNED = 0.9  # of its own training clips: a network that knows fewer has stopped too early to be called finished
SURE = 0.98  # share of the videos; a further attacker could not change what that says


def stopped_early(learned: float | None) -> bool:
    """Whether a network that knew this share of its training clips may find more with more steps (None: not told)."""
    return learned is not None and learned < LEARNED


def least_learned(strongest: float, learned: Iterable[float | None]) -> float | None:
    """What the least finished of several attackers knew of its own clips: with more steps it might be the strongest.

    None where that could change nothing (the strongest is right in ``SURE`` of the videos) or nobody told.
    """
    told = [share for share in learned if share is not None]
    return min(told) if told and strongest < SURE else None
