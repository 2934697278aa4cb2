"""A site's own judgement of an anonymizer that is to be released: fresh networks, its own videos, figures out.

The server sends the very file that it would sign. The site opens it (safetensors: nothing in it is run), lets fresh
attackers learn on what it makes of the site's training videos and asks them about the held-out ones, the same on raw
video, and tells of each question the strongest attacker's figure. No label is needed: retrieval asks whether an
anonymised view can be matched to its own video. Where the manifest names identities, attributes or actions, they are
asked about too.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.footage import Footage
from client.held import Read, attackable, attribute_labels, attributes_of, build_set, labels_of, lead_in_of
from client.training import on_step
from client.video.rows import Row, class_names
from spact_models.anonymizer import Anonymizer, ClipTransform
from spact_models.attackers import DEFAULTS, check_attackers, networks_of, watches_motion
from spact_models.checkpoint import ANONYMIZER_FILE
from spact_models.errors import UserError
from spact_models.gate import ACTION, LABELLED, Judgement, Question, refuse_under_dp
from spact_models.judge import RETRIEVAL_FORMS, Answer, Judge, JudgeSet
from spact_models.learned import least_learned
from spact_models.metrics import (
    attribute_chance,
    attribute_interval,
    bootstrap_interval,
    class_mean_average_precision,
)
from spact_models.networks import load_anonymizer
from spact_models.obfuscations import by_name
from spact_models.run_config import load_settings
from spact_models.seeds import seed_for
from spact_models.settings import Settings
from spact_models.workshop import side_by_side

IDENTITY = "identity"  # the column that says who it is; further columns are attributes
LARGEST_BYTES = 2**31  # of an anonymizer's file
Pair = tuple[JudgeSet, JudgeSet]  # train, test
Found = dict[tuple[str, str, str], Any]  # (representation, task, attacker) -> what the judge answered


@dataclass(frozen=True)
class Received:
    """The anonymizer that is to be judged, and the settings that it was trained with on this run's judge budget."""

    anonymizer: Anonymizer
    settings: Settings
    sha256: str


def receive(content: bytes, settings: Settings) -> Received:
    """Open the file that the server sent.

    Raises:
        UserError: too large, or no anonymizer that this fedspact reads.
    """
    if len(content) > LARGEST_BYTES:
        raise UserError(f"the anonymizer's file has {len(content)} bytes, must be at most {LARGEST_BYTES}")
    with tempfile.TemporaryDirectory(prefix="fedspact-") as folder:
        file = Path(folder) / ANONYMIZER_FILE
        file.write_bytes(content)
        try:
            anonymizer, trained, _ = load_anonymizer(file)
        except UserError as error:
            raise UserError(f"the anonymizer that came: {str(error).replace(f'{file}: ', '')}") from None
    for flat in (settings.flat(), trained.flat()):
        refuse_under_dp(flat)
    budget = {key: value for key, value in settings.flat().items() if key.startswith("judge.")}
    mine = {"device": settings.device, "precision": settings.precision}
    chosen = load_settings({**trained.flat(), **budget, **mine})
    return Received(anonymizer, chosen, hashlib.sha256(content).hexdigest())


def judge(received: Received, footage: Footage, attackers: Sequence[str], seed: int, device: torch.device) -> Judgement:
    """Train the fresh networks, ask them, keep the strongest of each question.

    Args:
        received: what to judge.
        footage: the site's videos, training and held-out, at the anonymizer's working size.
        attackers: names; empty: the preset's.
        seed: of the fresh networks.
        device: where they learn.

    Raises:
        UserError: an attacker that is not known, or fewer than two videos on a side.
    """
    names = check_attackers([*attackers]) or DEFAULTS[received.settings.preset]
    train, test = ([row for row in rows if not row.is_image] for rows in (footage.train, footage.test))
    if len(train) < 2 or len(test) < 2:
        raise UserError(
            f"{len(train)} training and {len(test)} held-out videos, a judgement needs two of each; "
            "give more rows of the manifest the split test, or set test_share higher"
        )
    asked = _Asked.of(train, test)
    raw = tuple(
        _read(rows, clips, received.settings, footage, asked, names)
        for rows, clips in ((train, received.settings.judge.train_clips), (test, received.settings.judge.test_clips))
    )
    found = _answers(received, (raw[0], raw[1]), asked, names, seed, device)
    questions = [_question(found, task, names) for task in (ACTION, *_private(found))]
    kept = tuple(one for one in questions if one is not None)
    return Judgement(len(train), len(test), len(names), kept)


@dataclass(frozen=True)
class _Asked:
    """What these rows can answer beside retrieval: the class names of each question, empty where they cannot."""

    actions: tuple[str, ...]
    identities: tuple[str, ...]
    attributes: tuple[str, ...]

    @staticmethod
    def of(train: Sequence[Row], test: Sequence[Row]) -> _Asked:
        actions = class_names(train)
        labelled = len(actions) >= 2 and any(row.action in actions for row in test)
        columns = tuple(dict.fromkeys(name for row in train for name in row.attributes if name != IDENTITY))
        return _Asked(
            tuple(actions) if labelled else (),
            tuple(attackable(train, test, IDENTITY)),
            tuple(attribute_labels(train, columns)),
        )


def _read(
    rows: Sequence[Row], clips: int, settings: Settings, footage: Footage, asked: _Asked, attackers: Sequence[str]
) -> JudgeSet:
    named = {ACTION: asked.actions, IDENTITY: asked.identities}
    labels = {task: labels_of(rows, task, names) for task, names in named.items() if names}
    halves = any(map(watches_motion, attackers))
    attributes_VA = attributes_of(rows, asked.attributes) if asked.attributes else None
    return build_set(
        rows, footage.cache, settings.clip, Read(clips, lead_in_of(settings), halves=halves), labels, attributes_VA
    )


def _answers(
    received: Received, raw: Pair, asked: _Asked, names: Sequence[str], seed: int, device: torch.device
) -> Found:
    """Every fresh network on both representations; the anonymised set is made once."""
    stop, step = threading.Event(), on_step.get()

    def one_step() -> None:
        if stop.is_set():  # one beside this failed, or the user interrupted
            raise KeyboardInterrupt
        step()

    settings = received.settings
    action_name: Any = settings.networks.action  # a name that the settings have checked
    fresh = Judge(settings.judge, action_name, device, seed_for("release", seed), settings.precision, one_step)
    transforms: dict[str, ClipTransform] = {"raw": by_name("raw"), "anonymized": received.anonymizer}
    jobs: dict[tuple[str, str, str], Callable[[], Any]] = {}
    for representation, transform in transforms.items():
        pair = (raw[0].through(transform, device), raw[1].through(transform, device))
        jobs |= {(representation, *key): job for key, job in _jobs(fresh, pair, asked, names).items()}
    answers = side_by_side(jobs, device, stop.set)
    found: Found = {}
    for (representation, task, attacker), answer in answers.items():
        forms = (
            {f"retrieval_{form}": answer[form] for form in RETRIEVAL_FORMS} if task == "retrieval" else {task: answer}
        )
        found |= {(representation, form, attacker): one for form, one in forms.items() if len(one.hit_V)}
    return found


def _jobs(fresh: Judge, pair: Pair, asked: _Asked, names: Sequence[str]) -> dict[tuple[str, str], Callable[[], Any]]:
    jobs: dict[tuple[str, str], Callable[[], Any]] = {}
    if asked.actions:
        jobs[ACTION, ACTION] = partial(fresh.action, *pair)
    for name in networks_of(names):
        jobs["retrieval", name] = partial(fresh.retrieval, *pair, name)
    for name in names:
        if asked.identities:
            jobs[IDENTITY, name] = partial(fresh.attack, *pair, IDENTITY, name)
        if asked.attributes:
            jobs["attributes", name] = partial(fresh.attributes, *pair, name)
    return jobs


def _private(found: Found) -> list[str]:
    return sorted({task for _, task, _ in found} - {ACTION})


def _question(found: Found, task: str, names: Sequence[str]) -> Question | None:
    """The strongest attacker on raw and the strongest on anonymised clips; None where there is nothing to learn."""
    asked = [name for name in (ACTION, *names) if ("raw", task, name) in found]
    if not asked:
        return None
    measure = _precision if task == "attributes" else _top1
    raw, _ = max((measure(found["raw", task, name]) for name in asked), key=lambda one: one[0])
    each = [measure(found["anonymized", task, name]) for name in asked]
    anonymized, (low, high) = max(each, key=lambda one: one[0])
    answer: Answer = found["raw", task, asked[0]]
    level = attribute_chance(answer.labels_V)[0] if task == "attributes" else answer.chance
    if math.isnan(raw) or math.isnan(anonymized) or not level < 1:
        return None
    learned = least_learned(anonymized, [found["anonymized", task, name].learned for name in asked])
    if learned is None and task in LABELLED:  # the strongest is sure, or only trees were asked: no steps are lacking
        learned = 1.0
    return Question(task, len(answer.hit_V), level, raw, anonymized, low, high, learned)


def _top1(answer: Answer) -> tuple[float, tuple[float, float]]:
    return answer.top1, bootstrap_interval(answer.hit_V.numpy()[None].astype(np.float64))


def _precision(answer: Answer) -> tuple[float, tuple[float, float]]:
    value = class_mean_average_precision(answer.scores_VK, answer.labels_V)
    if math.isnan(value):
        return value, (value, value)
    return value, attribute_interval(answer.scores_VK[None], answer.labels_V)
