"""Figures that are lower bounds: of fresh networks whose steps ended before they knew their own training clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spact_models.learned import LEARNED, stopped_early

MORE_STEPS = "what attackers with more steps find"
HOW = "judge with more: fedspact compare --trained DIR --set judge.steps=N"


def weak_cells(lines: Sequence[Mapping[str, Any]]) -> int:
    """Of a comparison's cells (``arms``), in how many f_T or an attacker had not learned its own training clips."""
    knew = [[(line[part] or {}).get("learned") for part in ("action", "leakage")] for line in lines]
    return sum(any(map(stopped_early, shares)) for shares in knew)


def warning(lines: Sequence[Mapping[str, Any]]) -> str:
    """A sentence for readers of the verdicts; empty where no cell is weak."""
    weak = weak_cells(lines)
    if not weak:
        return ""
    return (
        f"Lower bounds: in {weak} of {len(lines)} cells a fresh network was right in less than {LEARNED:.0%} of its "
        "own training clips when its steps ended. Their figures carry ≥, and what holds by them may not hold with more "
        f"steps; {HOW}."
    )


def stopped_early_note(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where attackers had not learned their own training clips, nobody knows what more steps find."""
    told = [line["leakage"]["learned"] for line in lines if line["leakage"]["learned"] is not None]
    early = [share for share in told if stopped_early(share)]
    if not early:
        return []
    return [
        f"{MORE_STEPS}: in {len(early)} of {len(told)} cells an attacker was right in less "
        f"than {LEARNED:.0%} of its own training clips when its steps ended; --trained with a larger judge.steps asks"
    ]
