"""Fresh attackers at earlier checkpoints: how privacy and utility move while a run trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from client.video.cache import FrameCache
from client.video.rows import Row
from server.runs import RunFolder
from simulations.protocols.bench import ANONYMIZED
from simulations.protocols.evaluation import ACTION, Attack, Evaluation
from simulations.protocols.suite import Suite, judge_suite
from spact_models.attackers import CHEAPEST
from spact_models.errors import UserError
from spact_models.networks import load_anonymizer
from spact_models.settings import Settings

CHANCE = "chance"  # stands on the curves like a representation


def checked_rounds(run: RunFolder, asked: Sequence[int]) -> list[int]:
    """The asked rounds, in order; UserError names the first that has no checkpoint."""
    held = run.checkpoints()
    for number in asked:
        if number not in held:
            raise UserError(
                f"--rounds {number}: {run.path} holds no checkpoint of it, but of {', '.join(map(str, held)) or 'none'}"
            )
    return sorted(set(asked))


def judge_rounds(
    run: RunFolder,
    asked: Sequence[int],
    settings: Settings,
    rows: Sequence[Row],
    cache: FrameCache,
    device: torch.device,
    suite: Suite,
    evaluation: Evaluation,
    attribute_rows: Sequence[Row] | None = None,
) -> Evaluation:
    """The evaluation with each asked round's figures: one seed, the cheapest attacker, nothing but the anonymizer.

    Rounds that the evaluation holds are not judged again.
    """
    cheap = replace(
        suite,
        representations=(ANONYMIZED,),
        attackers=CHEAPEST[settings.preset],
        retrieval_attackers=(),
        retrieval=suite.retrieval and not suite.tasks,
        seeds=suite.seeds[:1],
        crops=False,
        inversion=False,
    )
    held = {int(one["round"]): one for one in evaluation.rounds}
    for number in asked:
        if number not in held:
            anonymizer, _, _ = load_anonymizer(run.checkpoint_path(number))
            judged, _ = judge_suite(anonymizer, settings, rows, cache, device, cheap, attribute_rows=attribute_rows)
            one = judged.representations[ANONYMIZED]
            held[number] = {"round": number, "action": one.action, "attacks": one.attacks}
    return replace(evaluation, rounds=tuple(held[number] for number in sorted(held)))


def draw_rounds(run: RunFolder, evaluation: Evaluation) -> None:
    """The rounds' figures as curves in the run's TensorBoard, each question with its chance."""
    chance = {f"{CHANCE}/{task}": level for task, level in evaluation.chance.items() if level is not None}
    for one in evaluation.rounds:
        attacks: Mapping[str, Attack] = one["attacks"]
        figures = {task: attack.figure.mean for task, attack in attacks.items()}
        if one["action"] is not None:
            figures[ACTION] = one["action"].mean
        seen = {f"{ANONYMIZED}/{task}": value for task, value in figures.items()}
        asked = {f"{CHANCE}/{task}" for task in figures}
        run.draw_evaluation(one["round"], {**seen, **{name: chance[name] for name in asked & chance.keys()}})
    run.close()
