"""A comparison in words: its figures in the first sentence, then what each paired test says, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulations.compare.bounds import warning
from simulations.compare.statistics import BY_LOWER_BOUNDS, FAILS, HOLDS, UNDECIDED
from simulations.report.collect import ComparisonStory
from simulations.report.judged import Figure
from simulations.report.words import Sentence, counted, measured, name_of, points
from spact_models.learned import stopped_early

TRAINED = ("centralized", "federated", "local-only")


def figure_of(told: Any) -> Figure | None:
    """A figure as ``comparison.json`` holds it; None: not measured."""
    if not isinstance(told, Mapping) or told.get("mean") is None:
        return None
    seeds = tuple(told.get("per_seed") or ())
    return Figure(told["mean"], told.get("sd"), told.get("low"), told.get("high"), seeds, told.get("learned"))


def arm_name(arm: Mapping[str, Any]) -> str:
    """``federated, site``."""
    partition = arm.get("partition")
    return f"{name_of(str(arm.get('arm')))}, {partition}" if partition else name_of(str(arm.get("arm")))


def task_of(comparison: ComparisonStory) -> str:
    """What leaks."""
    return str(comparison.content.get("task") or "identity")


def whom(task: str) -> str:
    """What an attacker names."""
    return {"identity": "the person", "source": "the camera or recording"}.get(task, f"the {name_of(task)}")


def comparison_headline(comparison: ComparisonStory) -> Sentence:
    """What the federation and pooled training keep and give away; without both of them, what the trained arms do."""
    rows = [row for row in comparison.content["summary"] if row.get("arm") in TRAINED]
    task = task_of(comparison)
    for test in comparison.content.get("tests") or []:
        ours = _row(rows, "federated", test.get("partition"))
        theirs = _row(rows, "centralized", test.get("partition")) or _row(rows, "centralized", None)
        if ours and theirs and "centralized" in str(test.get("name")):
            split = f" (split {test['partition']})" if test.get("partition") else ""
            told = f"Federated{split}: action {_share(ours, 'action')}, {name_of(task)} {_share(ours, 'leakage')}. "
            told += f"Centralized: {_share(theirs, 'action')} and {_share(theirs, 'leakage')}. "
            apart = [
                f"{word} {_difference(test[part])}"
                for part, word in (("utility", "action"), ("leakage", name_of(task)))
                if test.get(part)
            ]
            return Sentence(f"{told}Difference in points: {', '.join(apart)}.")
    if not rows:
        return Sentence("Baselines side by side; nothing was trained, and no paired test was made.")
    each = [
        f"{arm_name(row)}: action {_share(row, 'action')}, {name_of(task)} {_share(row, 'leakage')}" for row in rows
    ]
    told = "; ".join(each)
    return Sentence(f"{told[:1].upper()}{told[1:]}.")


def _row(rows: Sequence[Mapping[str, Any]], arm: str, partition: Any) -> Mapping[str, Any] | None:
    return next((row for row in rows if row.get("arm") == arm and row.get("partition") == partition), None)


def _share(row: Mapping[str, Any], part: str) -> str:
    figure = figure_of(row.get(part))
    return measured(figure) if figure else "–"


def _difference(told: Mapping[str, Any]) -> str:
    return f"{points(told.get('difference'))} [{points(told.get('low'))} to {points(told.get('high'))}]"


def comparison_sentences(comparison: ComparisonStory) -> list[Sentence]:
    """How many tests hold, and of each whether, where and by how much; before them what they all rest on."""
    tests = comparison.content.get("tests") or []
    tones = {HOLDS: "good", FAILS: "bad"}
    weak = warning(comparison.content.get("arms") or [])
    out = [Sentence(weak, "bad")] if weak else []
    if not tests:
        return [*out, Sentence("No paired test was made.")]
    out.append(_count([verdict(test) for test in tests]))
    told = [(_test_sentence(test, task_of(comparison)), verdict(test)) for test in tests]
    return [*out, *(Sentence(text, tones.get(found, "plain")) for text, found in told)]


def _count(found: Sequence[str]) -> Sentence:
    words = {
        HOLDS: ("holds", "hold"),
        BY_LOWER_BOUNDS: ("holds by lower bounds", "hold by lower bounds"),
        FAILS: ("does not", "do not"),
        UNDECIDED: ("is undecided", "are undecided"),
    }
    counts = {word: found.count(word) for word in words}
    parts = [f"{count} {words[word][count > 1]}" for word, count in counts.items() if count]
    return Sentence(f"{counted(len(found), 'paired test')}: {', '.join(parts)}.")


def verdict(test: Mapping[str, Any]) -> str:
    """A paired test holds when it does in utility and in leakage, and does not when it fails in one of them.

    It holds by lower bounds where a fresh network that it rests on had not learned its own training clips.
    """
    asked = [test[part] for part in ("utility", "leakage") if test.get(part)]
    found = [told.get("holds") for told in asked]
    if any(held is False for held in found):
        return FAILS
    if not found or not all(found):
        return UNDECIDED
    return BY_LOWER_BOUNDS if any(stopped_early(told.get("learned")) for told in asked) else HOLDS


def _test_sentence(test: Mapping[str, Any], task: str) -> str:
    told = [
        f"{word} {points(test[part].get('difference'))} points"
        for part, word in (("utility", "action"), ("leakage", name_of(task)))
        if test.get(part)
    ]
    name = str(test.get("name", "a paired test"))
    partition = f", split {test['partition']}" if test.get("partition") else ""
    return f"{name[:1].upper()}{name[1:]}{partition}: {verdict(test)} ({', '.join(told)})."


def explanations(comparison: ComparisonStory) -> list[str]:
    """What the columns of a comparison mean."""
    task = task_of(comparison)
    out = [
        "Every arm is judged by fresh networks, which learn on what its anonymizer makes of the training videos and "
        "are asked about the held-out ones. Action: in what share of them the action is named. "
        f"{name_of(task).capitalize()} (leakage): in what share the strongest attacker names {whom(task)}; less is "
        "more private."
    ]
    if any(row.get("worst_site") for row in comparison.content["summary"]):
        out.append(
            "Worst site: where action minus leakage is least. Of a federation it is a site on its own held-out videos, "
            "all sites sharing one anonymizer; of sites that train alone it is one site's anonymizer on everybody's."
        )
    return out
