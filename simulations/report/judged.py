"""What fresh networks found, read from ``evaluation.json`` or, where there is none, from a run's ``summary.json``.

The page and the list of runs see only these dataclasses, so that an old run, a quick one and a full one look alike.
Figures are shares in 0…1; what was not measured is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from simulations.protocols import evaluation
from simulations.protocols.evaluation import FILE, Evaluation, Represented
from spact_models.learned import least_learned, stopped_early

PREFERRED_TASKS = ("identity", "attributes", "source", "retrieval_same_source", "retrieval_all")
ANONYMIZED, RAW = "anonymized", "raw"


@dataclass(frozen=True)
class Figure:
    """A measured share: its mean over the seeds, and how sure one may be of it where that was measured too."""

    mean: float
    sd: float | None = None  # over seeds
    low: float | None = None  # 95 % bootstrap interval over test videos
    high: float | None = None
    per_seed: tuple[float, ...] = ()
    learned: float | None = None  # of its own training clips, answered right when the network's steps ended

    @property
    def at_least(self) -> bool:
        """Whether a network with more steps may have found more."""
        return stopped_early(self.learned)


@dataclass(frozen=True)
class Attack:
    """One private question put to every attacker; ``metric`` is ``top1`` or ``cmap``."""

    metric: str
    attackers: Mapping[str, Figure]
    f1: Mapping[str, Figure] = field(default_factory=dict)

    @property
    def strongest(self) -> str:
        """The attacker with the highest mean."""
        return max(self.attackers, key=lambda name: self.attackers[name].mean)

    @property
    def leakage(self) -> Figure:
        """The strongest attacker's, ``learned`` as little as the least finished of all had."""
        figure = self.attackers[self.strongest]
        told = [one.learned for one in self.attackers.values()]
        return replace(figure, learned=least_learned(figure.mean, told))

    @property
    def macro_f1(self) -> Figure | None:
        """By macro-F1, in which another attacker may be the strongest; None: not computed."""
        return Attack("f1", self.f1).leakage if self.f1 else None


@dataclass(frozen=True)
class Seen:
    """What fresh networks made of one representation of the videos."""

    action: Figure | None
    attacks: Mapping[str, Attack]  # by task
    reconstruction: Mapping[str, Figure] = field(default_factory=dict)  # psnr_db, ssim, identity …

    def leakage(self, task: str) -> Figure | None:
        """The strongest attacker's figure; None: not asked."""
        attack = self.attacks.get(task)
        return attack.leakage if attack else None


@dataclass(frozen=True)
class Judged:
    """One judgement of one anonymizer."""

    source: str  # the file's name
    representations: Mapping[str, Seen]
    chance: Mapping[str, float]  # by task
    rounds: Mapping[int, Seen] = field(default_factory=dict)  # the anonymizer as it was after earlier rounds
    seeds: tuple[int, ...] = ()
    train_videos: int | None = None
    test_videos: int | None = None
    not_measured: tuple[str, ...] = ()
    described: Mapping[str, Any] = field(default_factory=dict)  # protocol, budget, versions, machine ... as written

    @property
    def model(self) -> Mapping[str, Any]:
        """Path and SHA-256 of the file that was judged, as far as they were written."""
        return self.described.get("model") or {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task that some representation was asked, the most telling first."""
        asked = dict.fromkeys(task for seen in self.representations.values() for task in seen.attacks)
        first = [task for task in PREFERRED_TASKS if task in asked]
        return (*first, *(task for task in asked if task not in first))

    @property
    def main_task(self) -> str | None:
        """What the headline speaks of: the most telling task that the anonymized videos were asked."""
        asked = self.representations[ANONYMIZED].attacks if ANONYMIZED in self.representations else {}
        return next((task for task in self.tasks if task in asked), None)


def from_evaluation(written: Evaluation, file: str = FILE) -> Judged:
    """What ``fedspact evaluate`` wrote (docs/protocols.md) to the file of this name; perhaps baselines alone."""
    kept = ("created", "protocol", "recipe", "model", "budget", "action_network", "versions", "machine", "seconds")
    return Judged(
        source=file,
        representations={name: _seen(told) for name, told in written.representations.items()},
        chance=_shares(written.chance),
        rounds={int(told["round"]): _seen(Represented(told["action"], told["attacks"])) for told in written.rounds},
        seeds=written.seeds,
        train_videos=written.data.get("train_videos"),
        test_videos=written.data.get("test_videos"),
        not_measured=written.lacking,
        described={
            **{name: getattr(written, name) for name in kept},
            "manifest": written.data.get("manifest"),
            "data": written.data.get("sha256"),
        },
    )


def from_summary(summary: Mapping[str, Any]) -> Judged | None:
    """The quick judgement that a run ends with: one seed, no intervals. None: the run was not judged."""
    utility, attack = _shares(summary.get("utility")), summary.get("attack") or {}
    attackers, learned = summary.get("attackers") or {}, summary.get("learned") or {}
    names = list(dict.fromkeys([*utility, *(name for row in attack.values() for name in row)]))
    representations = {}
    for name in names:
        attacks = {}
        for task, row in attack.items():
            listed = _shares((attackers.get(task) or {}).get(name)) or _shares({"strongest": row.get(name)})
            knew = _shares((learned.get(task) or {}).get(name))
            if listed:
                attacks[task] = Attack(
                    "top1", {who: Figure(value, learned=knew.get(who)) for who, value in listed.items()}
                )
        action = Figure(utility[name], learned=(learned.get("action") or {}).get(name)) if name in utility else None
        if name != "chance" and (action or attacks):
            representations[name] = Seen(action, attacks)
    chance = {"action": utility.get("chance"), **{task: row.get("chance") for task, row in attack.items()}}
    if ANONYMIZED not in representations:
        return None
    return Judged(
        source="summary.json",
        representations=representations,
        chance=_shares(chance),
        seeds=(summary["seed"],) if "seed" in summary else (),
        train_videos=summary.get("train_videos"),
        test_videos=summary.get("test_videos"),
        described={"versions": summary.get("versions"), "action_network": (summary.get("judge") or {}).get("action")},
    )


def _seen(told: Represented) -> Seen:
    attacks = {
        task: Attack(attack.metric, _figures(attack.attackers), _figures(attack.f1))
        for task, attack in told.attacks.items()
        if attack.attackers
    }
    return Seen(_figures({"": told.action}).get(""), attacks, _figures(told.reconstruction))


def _figures(told: Mapping[str, evaluation.Figure | None] | None) -> dict[str, Figure]:
    known = {name: figure for name, figure in (told or {}).items() if figure is not None}
    return {name: Figure(one.mean, one.sd, one.low, one.high, one.per_seed, one.learned) for name, one in known.items()}


def _shares(told: Mapping[str, Any] | None) -> dict[str, float]:
    return {name: float(value) for name, value in (told or {}).items() if value is not None}
