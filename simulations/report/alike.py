"""Whether judgements may stand side by side: the same videos, asked the same questions in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from simulations.report.collect import RunStory
from simulations.report.judged import Judged
from simulations.report.words import counted

Placed = tuple[RunStory, Judged]  # a run that was judged, and its judgement


def way(run: RunStory, judged: Judged) -> dict[str, Any]:
    """All that decides a run's figures besides its anonymizer, by the word for it."""
    told = judged.described
    budget = dict(told.get("budget") or {})
    asked = {
        (task, attacker)
        for seen in judged.representations.values()
        for task, attack in seen.attacks.items()
        for attacker in attack.attackers
    }
    return {
        "videos": (judged.train_videos, judged.test_videos, told.get("data")),
        "protocols": (told.get("protocol"), judged.source),
        "steps": budget.pop("steps", run.settings.get("judge.steps")),
        "budgets": budget,
        "seeds": judged.seeds,
        "attackers": asked,
        "action networks": told.get("action_network"),
    }


def differences(placed: Sequence[Placed]) -> list[str]:
    """In what the judgements of these runs differ; empty: they were judged alike."""
    ways = [way(*one) for one in placed]
    return [name for name in (ways[0] if ways else ()) if any(one[name] != ways[0][name] for one in ways)]


def mixed(runs: Sequence[RunStory]) -> str:
    """A warning where runs stand side by side that were not judged alike."""
    apart = differences([(run, run.judged) for run in runs if run.judged is not None])
    if not apart:
        return ""
    return (
        f"These runs were not judged on the same videos in the same way, but with other {', '.join(apart)}: "
        "compare them with care."
    )


def beside(placed: Sequence[Placed]) -> tuple[Judged, str]:
    """The fullest judgement, with the rows that it lacks from those of its own way; whose they are, in words."""
    first = max(placed, key=lambda one: len(one[1].representations))
    rows, lenders = dict(first[1].representations), [first[0].name]
    for one in placed:
        more = {name: seen for name, seen in one[1].representations.items() if name not in rows}
        if more and not differences([first, one]):
            rows |= more
            lenders.append(one[0].name)
    left = len(placed) - sum(not differences([first, one]) for one in placed)
    words = f"Baselines as judged with {' and '.join(lenders)}"
    words += f"; {counted(left, 'run')} judged otherwise." if left else "."
    return replace(first[1], representations=rows), words
