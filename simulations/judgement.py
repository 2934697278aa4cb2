"""The quick judgement of a run: fresh networks on held-out clips, for the anonymizer and for what it must beat."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from client.video.cache import FrameCache
from client.video.rows import Row, class_names
from client.video.sampling import test_clips
from spact_models.anonymizer import Anonymizer, ClipTransform
from spact_models.judge import Judge, JudgeSet, chance, side_by_side
from spact_models.obfuscations import by_name
from spact_models.seeds import seed_for
from spact_models.settings import ClipConfig, Settings

LEAD_IN = 1  # frames in front of every judged clip, so that anything with a history of one frame can be judged
VIEWS = 8  # single views of each video, from its start to its end, for the retrieval attacker
BASELINES = {"raw": "raw", "downsample4x": "downsample4x", "difference1bit": "difference1bit"}
REPRESENTATIONS = (*BASELINES, "anonymized")


@dataclass(frozen=True)
class Judgement:
    """Figures in 0…1 by representation or ``"chance"``: ``utility[…]``, ``attack[task][…]``; NaN: not measurable."""

    utility: dict[str, float]
    attack: dict[str, dict[str, float]]
    attackers: dict[str, dict[str, dict[str, float]]]  # task -> representation -> attacker -> top-1
    train_videos: int
    test_videos: int


def build_set(
    rows: Sequence[Row], cache: FrameCache, clip: ClipConfig, clips: int, labels: dict[str, Tensor]
) -> JudgeSet:
    """Read ``clips`` uniform clips and ``VIEWS`` views of each row into memory, as 8-bit frames at working size."""
    read_clips, read_views = [], []
    for row in rows:
        frames = cache.frames(row.path)
        index = test_clips(len(frames), clip.frames, clip.stride_frames, LEAD_IN, clips)
        read_clips.append(frames[index])
        starts = np.linspace(0, len(frames) - 1, VIEWS).round().astype(int)
        before = np.where(
            starts >= clip.stride_frames, starts - clip.stride_frames, np.minimum(starts + 1, len(frames) - 1)
        )
        read_views.append(frames[np.stack([before, starts], axis=1)])
    sources = {name: number for number, name in enumerate(sorted({row.source for row in rows if row.source}))}
    return JudgeSet(
        clips_MTHWC=torch.from_numpy(np.concatenate(read_clips)),
        video_M=torch.arange(len(rows)).repeat_interleave(clips),
        views_VKTHWC=torch.from_numpy(np.stack(read_views)),
        labels=labels,
        group_V=torch.tensor([sources.get(row.source or "", -1) for row in rows]),
        lead_in_frames=LEAD_IN,
    )


def labels_of(rows: Sequence[Row], task: str, names: Sequence[str]) -> Tensor:
    """(V,) class numbers of ``action`` or of an attribute column; -1 where unknown."""
    number = {name: place for place, name in enumerate(names)}
    values = [row.action if task == "action" else row.attributes.get(task) for row in rows]
    return torch.tensor([number.get(value or "", -1) for value in values])


def attackable(train: Sequence[Row], test: Sequence[Row], task: str) -> list[str]:
    """The class names of an attribute that can be learned on train and asked for on test; empty: it cannot."""
    seen = {row.attributes.get(task) for row in train} - {None, ""}
    asked = {row.attributes.get(task) for row in test} - {None, ""}
    return sorted(str(name) for name in seen) if len(seen) >= 2 and asked and asked <= seen else []


def judge_run(
    anonymizer: Anonymizer,
    settings: Settings,
    rows: Sequence[Row],
    cache: FrameCache,
    device: torch.device,
    tasks: Sequence[str] = ("identity",),
    with_retrieval: bool = True,
    representations: Sequence[str] = REPRESENTATIONS,
    progress: bool = True,
) -> Judgement:
    """Judge ``anonymizer`` and the baselines with fresh networks: action, private attributes, label-free retrieval.

    Rows whose split is ``train`` teach the fresh networks, rows whose split is ``test`` test them.
    """
    train, test = ([row for row in rows if row.split == split] for split in ("train", "test"))
    actions = class_names(train)
    with_action = len(actions) >= 2 and any(row.action in actions for row in test)
    asked = {task: names for task in tasks if (names := attackable(train, test, task))}
    raw = _read_sets(train, test, {"action": actions, **asked}, cache, settings)
    transforms: dict[str, ClipTransform] = {name: by_name(kind) for name, kind in BASELINES.items()}
    transforms["anonymized"] = anonymizer
    named: Any = settings.networks  # names that the settings have checked, where the judge wants literal types
    seed = seed_for("judge", settings.seed)
    judge = Judge(settings.judge, named.action, named.privacy, device, seed, settings.precision)
    empty = dict.fromkeys([*REPRESENTATIONS, "chance"], math.nan)
    judgement = Judgement(dict(empty), {"identity": dict(empty)}, {}, len(train), len(test))
    if with_action:
        judgement.utility["chance"] = chance(raw[1], "action")
    total = len(representations) * judge.steps_of(len(asked), with_action, with_retrieval)
    with tqdm(total=total, desc="judge", unit="step", disable=not progress, leave=False) as bar:
        judge = replace(judge, on_step=bar.update)
        for name in representations:
            bar.set_postfix_str(name)
            seen = tuple(part.through(transforms[name], device) for part in raw)
            found = side_by_side(_jobs(judge, seen[0], seen[1], list(asked), with_action, with_retrieval), device)
            _enter(judgement, name, found, {task: chance(raw[1], task) for task in asked})
    return judgement


def _read_sets(
    train: Sequence[Row], test: Sequence[Row], tasks: Mapping[str, Sequence[str]], cache: FrameCache, settings: Settings
) -> tuple[JudgeSet, JudgeSet]:
    def read(rows: Sequence[Row], clips: int) -> JudgeSet:
        labels = {task: labels_of(rows, task, names) for task, names in tasks.items()}
        return build_set(rows, cache, settings.clip, clips, labels)

    return read(train, settings.judge.train_clips), read(test, settings.judge.test_clips)


def _jobs(
    judge: Judge, train: JudgeSet, test: JudgeSet, tasks: Sequence[str], with_action: bool, with_retrieval: bool
) -> dict[tuple[str, str], Callable[[], Any]]:
    """Every fresh network to be trained on one representation, by (task, attacker)."""
    jobs: dict[tuple[str, str], Callable[[], Any]] = {}
    if with_action:
        jobs["action", ""] = partial(judge.utility, train, test)
    for task in tasks:
        made = judge.attack_jobs(train, test, task)
        jobs.update({(task, attacker): job for attacker, job in made.items()})
    if with_retrieval:
        jobs["retrieval", ""] = partial(judge.retrieval, train, test)
    return jobs


def _enter(judgement: Judgement, name: str, found: Mapping[tuple[str, str], Any], chances: Mapping[str, float]) -> None:
    """Write one representation's answers into the judgement; the strongest attacker counts."""
    if ("action", "") in found:
        judgement.utility[name] = found["action", ""]
    for task, level in chances.items():
        answers = {attacker: answer for (asked, attacker), answer in found.items() if asked == task}
        judgement.attackers.setdefault(task, {})[name] = answers
        judgement.attack.setdefault(task, {}).update({"chance": level, name: max(answers.values())})
    if ("retrieval", "") in found:
        matched = found["retrieval", ""]
        for form in ("all", "same_source"):
            row = judgement.attack.setdefault(f"retrieval_{form}", {})
            row.update({"chance": matched[f"{form}_chance"], name: matched[form]})


def table(judgement: Judgement) -> str:
    """The figures as a plain text table: one line a representation, chance below."""
    known = {task: row for task, row in judgement.attack.items() if _any(row.get(name) for name in REPRESENTATIONS)}
    tasks = list(known)
    heads = ["", "action ↑", *(f"{task.replace('_', ' ')} ↓" for task in tasks)]
    lines = {
        name: [judgement.utility[name], *(judgement.attack[task].get(name, math.nan) for task in tasks)]
        for name in REPRESENTATIONS
        if _any([judgement.utility[name], *(row.get(name) for row in known.values())])
    }
    lines["chance"] = [judgement.utility["chance"], *(judgement.attack[task]["chance"] for task in tasks)]
    text = [heads, *([name, *map(_figure, figures)] for name, figures in lines.items())]
    first, *rest = (max(map(len, column)) for column in zip(*text, strict=True))
    out = ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], rest)]) for row in text]
    return "\n".join([out[0], "─" * len(out[0]), *out[1:]])


def _any(figures: Iterable[float | None]) -> bool:
    """Whether one of them was measured."""
    return any(figure is not None and not math.isnan(figure) for figure in figures)


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
