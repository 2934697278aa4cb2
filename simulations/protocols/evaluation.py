"""``evaluation.json``: every figure of a judgement with its spread, its attackers, its chance and its budget.

All figures lie in 0…1 (but for PSNR, in dB); None is what the data cannot answer, and never NaN.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from spact_models.errors import UserError
from spact_models.files import write_file
from spact_models.learned import least_learned, stopped_early
from spact_models.metrics import bootstrap_interval

FORMAT = "fedspact-evaluation"
FORMAT_VERSION = 1
FILE = "evaluation.json"
ACTION = "action"
ALL, SAME_SOURCE = "retrieval_all", "retrieval_same_source"
NO_PAIR = "retrieval among videos of one source: no two test videos share a source"


@dataclass(frozen=True)
class Figure:
    """Mean over seeds; ``low``/``high``: 95 % bootstrap interval over the test videos; ``sd`` over seeds.

    ``learned``: of its own training clips the fresh network answered this share right when its steps ended (mean over
    seeds). One that had not learned those may have found more with more steps: :attr:`at_least`.
    """

    mean: float
    sd: float | None
    low: float
    high: float
    per_seed: tuple[float, ...]
    learned: float | None = None  # None: not told

    @property
    def at_least(self) -> bool:
        """Whether the network's steps ended before it knew its own training clips."""
        return stopped_early(self.learned)

    @staticmethod
    def of(per_seed: Sequence[float], interval: tuple[float, float], learned: Sequence[float | None] = ()) -> Figure:
        mean = sum(per_seed) / len(per_seed)
        squares = sum((value - mean) ** 2 for value in per_seed)
        sd = math.sqrt(squares / (len(per_seed) - 1)) if len(per_seed) > 1 else None
        rounded = tuple(round(float(value), 4) for value in per_seed)
        low, high = interval
        told = [value for value in learned if value is not None]
        return Figure(
            round(mean, 4),
            None if sd is None else round(sd, 4),
            round(low, 4),
            round(high, 4),
            rounded,
            round(sum(told) / len(told), 4) if told else None,
        )

    @staticmethod
    def of_hits(hits_SV: np.ndarray, learned: Sequence[float | None] = ()) -> Figure:
        """From answers video by video, (seeds, videos), of at least one video."""
        return Figure.of([float(row.mean()) for row in hits_SV], bootstrap_interval(hits_SV), learned)


@dataclass(frozen=True)
class Attack:
    """All attackers on one task; the strongest counts."""

    metric: str  # "top1" | "cmap"
    attackers: Mapping[str, Figure]
    f1: Mapping[str, Figure] | None = None  # macro-F1 beside cMAP

    @property
    def strongest(self) -> str:
        return max(self.attackers, key=lambda name: self.attackers[name].mean)

    @property
    def figure(self) -> Figure:
        """The strongest attacker's, ``learned`` as little as the least finished of all had."""
        figure = self.attackers[self.strongest]
        return replace(figure, learned=least_learned(figure.mean, [one.learned for one in self.attackers.values()]))

    @property
    def macro_f1(self) -> Attack | None:
        """The same answers by macro-F1, in which another attacker may be the strongest; None: not computed."""
        return Attack("f1", self.f1) if self.f1 else None

    def to_json(self) -> dict[str, Any]:
        out = {"metric": self.metric, "strongest": self.strongest, "attackers": _figures(self.attackers)}
        return out if self.f1 is None else {**out, "f1": _figures(self.f1)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Attack:
        f1 = data.get("f1")
        attackers = {name: _figure(value) for name, value in data["attackers"].items()}
        return Attack(data["metric"], attackers, None if f1 is None else {n: _figure(v) for n, v in f1.items()})


@dataclass(frozen=True)
class Represented:
    """One row of the table: what fresh networks make of one representation."""

    action: Figure | None
    attacks: Mapping[str, Attack]
    reconstruction: Mapping[str, Figure | None] | None = None

    @property
    def questions(self) -> dict[str, Attack]:
        """The attacks, macro-F1 as a question of its own, by the names that their chances have."""
        asked: dict[str, Attack] = {}
        for task, attack in self.attacks.items():
            asked[task] = attack
            if attack.macro_f1 is not None:
                asked[f"{task}_f1"] = attack.macro_f1
        return asked

    def to_json(self) -> dict[str, Any]:
        rebuilt = self.reconstruction
        return {
            "action": None if self.action is None else asdict(self.action),
            "attacks": {task: attack.to_json() for task, attack in self.attacks.items()},
            "reconstruction": None
            if rebuilt is None
            else {name: None if value is None else asdict(value) for name, value in rebuilt.items()},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Represented:
        rebuilt = data.get("reconstruction")
        return Represented(
            None if data["action"] is None else _figure(data["action"]),
            {task: Attack.from_json(attack) for task, attack in data["attacks"].items()},
            None
            if rebuilt is None
            else {name: None if value is None else _figure(value) for name, value in rebuilt.items()},
        )


@dataclass(frozen=True)
class Evaluation:
    """The whole file. ``key`` names all that decides a figure: judgements of one key may be put together."""

    protocol: str
    seeds: tuple[int, ...]
    budget: Mapping[str, float]
    action_network: str
    data: Mapping[str, Any]
    chance: Mapping[str, float | None]
    representations: Mapping[str, Represented]
    not_measured: tuple[str, ...] = ()
    rounds: tuple[Mapping[str, Any], ...] = ()  # {"round": 3, "action": Figure | None, "attacks": {task: Attack}}
    model: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    created: str = ""
    key: str = ""

    @property
    def lacking(self) -> tuple[str, ...]:
        """``not_measured``, and what one sees to be missing: a form of retrieval that had no two videos to compare."""
        asked = {task for row in self.representations.values() for task in row.attacks}
        silent = ALL in asked and SAME_SOURCE not in asked and NO_PAIR not in self.not_measured
        return (*self.not_measured, NO_PAIR) if silent else self.not_measured

    def to_json(self) -> dict[str, Any]:
        plain = ("protocol", "recipe", "model", "data", "budget", "action_network", "versions", "machine", "key")
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "created": self.created,
            **{name: getattr(self, name) for name in plain},
            "seeds": list(self.seeds),
            "chance": dict(self.chance),
            "representations": {name: one.to_json() for name, one in self.representations.items()},
            "rounds": [_round_to_json(one) for one in self.rounds],
            "not_measured": list(self.lacking),
            "seconds": round(self.seconds, 1),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Evaluation:
        """Raises KeyError or TypeError when ``data`` is not of this form."""
        plain = ("protocol", "recipe", "model", "data", "budget", "action_network", "versions", "machine", "chance")
        return Evaluation(
            **{name: data[name] for name in (*plain, "created", "seconds")},
            key=data.get("key", ""),
            seeds=tuple(data["seeds"]),
            representations={name: Represented.from_json(one) for name, one in data["representations"].items()},
            rounds=tuple(_round_from_json(one) for one in data["rounds"]),
            not_measured=tuple(data["not_measured"]),
        )

    def write(self, path: Path) -> None:
        """A reader sees the old file or the whole new one.

        Raises:
            UserError: it cannot be written.
        """
        text = json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"
        write_file(path, text, "free that disk, then go on: what was judged before is whole")


def read_evaluation(path: Path) -> Evaluation:
    """Raises UserError: not there, not of this format, or of a newer one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not an evaluation that can be read ({error}); write one with fedspact evaluate"
        ) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"{path}: not an evaluation of fedspact; write one with fedspact evaluate")
    if data.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version = {data.get('format_version')!r}, this fedspact reads {FORMAT_VERSION}; "
            "evaluate anew"
        )
    try:
        return Evaluation.from_json(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); write it anew with --force") from None


def now() -> str:
    """UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def known(value: float) -> float | None:
    """JSON's null for what is not a number."""
    return None if math.isnan(value) else round(value, 4)


def _figures(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {name: asdict(figure) for name, figure in figures.items()}


def _figure(data: Mapping[str, Any]) -> Figure:
    return Figure(data["mean"], data["sd"], data["low"], data["high"], tuple(data["per_seed"]), data.get("learned"))


def _round_to_json(one: Mapping[str, Any]) -> dict[str, Any]:
    return {"round": one["round"], **{k: v for k, v in _represented(one).to_json().items() if k != "reconstruction"}}


def _round_from_json(data: Mapping[str, Any]) -> dict[str, Any]:
    one = Represented.from_json(data)
    return {"round": data["round"], "action": one.action, "attacks": one.attacks}


def _represented(one: Mapping[str, Any]) -> Represented:
    return Represented(one["action"], one["attacks"])
