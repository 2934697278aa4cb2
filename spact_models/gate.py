"""What a site tells of its own judgement at a release, and what it means: names, the scale, and nothing else.

Both halves import this: the site writes these figures, the coordinator reads them. A figure that is not named here
does not leave a site.

Retrieval among 5 videos and among 500 cannot be compared as they are, nor can names with precision. So every attack
is put on one scale, ``(score - chance) / (1 - chance)``: 0 is guessing, 1 is always right. Below chance is 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spact_models.errors import UserError

PURPOSE = "release"  # of the query that asks for a judgement
ACTION = "action"
ATTACKS = ("retrieval_all", "retrieval_same_source", "identity", "attributes")
LABELLED = (ACTION, "identity", "attributes")  # whose networks can be asked what they know of their own clips
PARTS = ("videos", "chance", "raw", "anonymized", "low", "high", "learned")
COUNTS = ("release.train_videos", "release.test_videos", "release.attackers")
FIGURES = (
    *COUNTS,
    *(
        f"release.{task}.{part}"
        for task in (ACTION, *ATTACKS)
        for part in PARTS
        if part != "learned" or task in LABELLED
    ),
)
MOST_VIDEOS = 10**9  # a site that counts more is not believed


@dataclass(frozen=True)
class Question:
    """One question put to fresh networks, on raw and on anonymised clips; of attackers the strongest counts."""

    task: str
    videos: int  # held-out videos that it was asked about
    chance: float
    raw: float
    anonymized: float
    low: float  # 95 % interval of ``anonymized`` over those videos
    high: float
    # of its own training clips the least finished network on anonymised ones answered this share right when its steps
    # ended; 1 where more steps could change nothing; None: it has no labels that it could know (retrieval)
    learned: float | None = None

    @property
    def leakage(self) -> float:
        return scaled(self.anonymized, self.chance)

    @property
    def leakage_high(self) -> float:
        return scaled(max(self.high, self.anonymized), self.chance)

    @property
    def raw_leakage(self) -> float:
        return scaled(self.raw, self.chance)


@dataclass(frozen=True)
class Judgement:
    """All that a site says of an anonymizer."""

    train_videos: int
    test_videos: int
    attackers: int  # fresh ones that each private question was put to
    questions: tuple[Question, ...]

    @property
    def action(self) -> Question | None:
        return next((one for one in self.questions if one.task == ACTION), None)

    @property
    def attacks(self) -> tuple[Question, ...]:
        return tuple(one for one in self.questions if one.task != ACTION)

    def figures(self) -> dict[str, float]:
        """By the names of ``FIGURES``: counts as whole numbers, the rest to four places."""
        told: dict[str, float] = dict(zip(COUNTS, (self.train_videos, self.test_videos, self.attackers), strict=True))
        for one in self.questions:
            told |= {f"release.{one.task}.videos": one.videos}
            shares = {part: getattr(one, part) for part in PARTS[1:]}
            told |= {f"release.{one.task}.{part}": round(float(v), 4) for part, v in shares.items() if v is not None}
        return told


def refuse_under_dp(flat: Mapping[str, object]) -> None:
    """Fail closed: a judgement's figures are neither noised nor charged, and would leave beside the bound.

    Raises:
        UserError: these settings protect a unit, or hold ``dp.*`` keys that do not say that they protect none.
    """
    private = sorted(key for key in flat if key.startswith("dp."))
    if private and flat.get("dp.unit") != "none":
        raise UserError(
            f"dp.unit = {flat.get('dp.unit')!r}, a release asks sites for figures that no noise covers and no budget "
            "pays for, so it is refused under differential privacy. Judge on other footage (fedspact evaluate), or "
            'train without it (dp.unit = "none").'
        )


def scaled(score: float, chance: float) -> float:
    """``(score - chance) / (1 - chance)``, not below 0; where chance is 1 nothing could be learned: NaN."""
    return max(0.0, (score - chance) / (1.0 - chance)) if chance < 1.0 else math.nan


def read_judgement(figures: Mapping[str, object]) -> Judgement:
    """What :meth:`Judgement.figures` wrote, checked: it comes from outside.

    Raises:
        ValueError: a figure is missing, is no number, or lies outside its range; the message names it.
    """
    train, test, attackers = (_count(figures, name) for name in COUNTS)
    questions = [_question(figures, task) for task in (ACTION, *ATTACKS) if _told(figures, task)]
    return Judgement(train, test, attackers, tuple(questions))


def _told(figures: Mapping[str, object], task: str) -> Sequence[str]:
    return [part for part in PARTS if f"release.{task}.{part}" in figures]


def _question(figures: Mapping[str, object], task: str) -> Question:
    videos = _count(figures, f"release.{task}.videos")
    shares = [_share(figures, f"release.{task}.{part}") for part in PARTS[1:-1]]
    chance, raw, anonymized, low, high = shares
    if not (chance < 1 and low <= high):
        raise ValueError(f"{task}: chance = {chance}, interval [{low}, {high}] of {anonymized} cannot be")
    learned = _learned(figures, f"release.{task}.learned") if task in LABELLED else None
    return Question(task, videos, chance, raw, anonymized, low, high, learned)


def _learned(figures: Mapping[str, object], name: str) -> float:
    """0 where it is not told, as by a site of an earlier version: what nobody has shown does not pass."""
    return _share(figures, name) if name in figures else 0.0


def _count(figures: Mapping[str, object], name: str) -> int:
    value = figures.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_VIDEOS:
        raise ValueError(f"{name} = {value!r:.40}, must be a whole number from 0")
    return value


def _share(figures: Mapping[str, object], name: str) -> float:
    value = figures.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{name} = {value!r:.40}, must be a number in 0…1")
    return float(value)
