"""From what the judge answered to the figures of an evaluation, and to hits video by video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from simulations.protocols.evaluation import ACTION, Attack, Figure, Represented, known
from spact_models.attackers import ATTACKERS
from spact_models.judge import RETRIEVAL_FORMS, Answer
from spact_models.metrics import attribute_interval, class_mean_average_precision, macro_f1

Hits = dict[str, dict[str, dict[str, np.ndarray]]]  # [representation][task][attacker] -> (seeds, videos) in 0…1
Found = dict[tuple[str, str, int], Any]  # (task, attacker, seed) -> what the judge answered
IN_TURN = "in turn"  # instead of an attacker: the answers of those that were asked, by name


def _answers(found: Found, task: str, attacker: str, seeds: Sequence[int]) -> list[Answer]:
    return [found[task, attacker, seed] for seed in seeds]


def _learned(found: Found, task: str, attacker: str, seeds: Sequence[int]) -> list[float | None]:
    return [answer.learned for answer in _answers(found, task, attacker, seeds)]


def _flattened(found: Found) -> Found:
    """Retrieval's forms as tasks of their own; what is not an :class:`Answer` is left out."""
    flat: Found = {}
    for (task, attacker, seed), answer in found.items():
        if task == "retrieval":
            flat |= {(f"retrieval_{form}", attacker, seed): answer[form] for form in RETRIEVAL_FORMS}
        elif attacker == IN_TURN:
            flat |= {(task, one, seed): theirs for one, theirs in answer.items()}
        elif isinstance(answer, Answer):
            flat[task, attacker, seed] = answer
    return {key: answer for key, answer in flat.items() if len(answer.hit_V)}


def _named(found: Found) -> dict[str, list[str]]:
    """Task -> attackers, in the order of ATTACKERS."""
    order = [ACTION, *ATTACKERS]
    tasks = list(dict.fromkeys(task for task, _, _ in found))
    return {
        task: sorted({attacker for asked, attacker, _ in found if asked == task}, key=order.index) for task in tasks
    }


def hits_of(found: Found, seeds: Sequence[int]) -> dict[str, dict[str, np.ndarray]]:
    flat = _flattened(found)
    return {
        task: {
            one: np.stack([answer.hit_V.numpy() for answer in _answers(flat, task, one, seeds)]) for one in attackers
        }
        for task, attackers in _named(flat).items()
    }


def represented(found: Found, seeds: Sequence[int]) -> Represented:
    """One representation's answers as figures."""
    flat, hits = _flattened(found), hits_of(found, seeds)
    attacks: dict[str, Attack] = {}
    for task, attackers in _named(flat).items():
        if task == "attributes":
            answers = {one: _answers(flat, task, one, seeds) for one in attackers}
            forms = [{one: _attribute_figure(each, form) for one, each in answers.items()} for form in ("cmap", "f1")]
            attacks[task] = Attack("cmap", *forms)
        elif task != ACTION:
            figures = {one: Figure.of_hits(hits[task][one], _learned(flat, task, one, seeds)) for one in attackers}
            attacks[task] = Attack("top1", figures)
    order = [
        *(task for task in attacks if not task.startswith("retrieval")),
        *(f"retrieval_{f}" for f in RETRIEVAL_FORMS),
    ]
    action = None
    if ACTION in hits:
        action = Figure.of_hits(hits[ACTION][ACTION], _learned(flat, ACTION, ACTION, seeds))
    return Represented(
        action, {task: attacks[task] for task in order if task in attacks}, _reconstruction(found, seeds)
    )


def _attribute_figure(answers: Sequence[Answer], form: str) -> Figure:
    measure = class_mean_average_precision if form == "cmap" else macro_f1
    scores_SVA, labels_VA = torch.stack([one.scores_VK for one in answers]), answers[0].labels_V
    per_seed = [measure(scores_VA, labels_VA) for scores_VA in scores_SVA]
    return Figure.of(per_seed, attribute_interval(scores_SVA, labels_VA, form), [one.learned for one in answers])


OTHERWISE = ("identity", "pictures")  # what a reconstruction holds besides a figure a video


def _reconstruction(found: Found, seeds: Sequence[int]) -> dict[str, Figure | None] | None:
    each = [found["reconstruction", "", seed] for seed in seeds if ("reconstruction", "", seed) in found]
    if not each:
        return None
    out: dict[str, Figure | None] = {
        name: Figure.of_hits(np.stack([one[name] for one in each])) for name in each[0] if name not in OTHERWISE
    }
    attackers: dict[str, Figure] = {}
    for attacker in each[0].get("identity", ()):
        answers = [one["identity"][attacker] for one in each]
        hits_SV = np.stack([answer.hit_V.numpy() for answer in answers])
        attackers[attacker] = Figure.of_hits(hits_SV, [answer.learned for answer in answers])
    out["identity"] = Attack("top1", attackers).figure if attackers else None
    return out


def not_asked(found: Found, name: str, attackers: Sequence[str]) -> list[str]:
    """Of one representation: who was not asked any more, and because of whom."""
    notes = []
    for (task, attacker, _), answers in found.items():
        if attacker == IN_TURN and (left := [one for one in attackers if one not in answers]):
            last = list(answers)[-1]
            sure = f"{last} is right in {float(answers[last].hit_V.mean()):.1%} of the videos already"
            notes.append(f"{task} of {name} by {', '.join(left)}: {sure}")
    return notes


def retrieval_chance(found: Found) -> dict[str, float | None]:
    return {
        task: known(answer.chance) for (task, _, _), answer in _flattened(found).items() if task.startswith("retrieval")
    }
