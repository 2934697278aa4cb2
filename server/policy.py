"""A release policy: what the sites must find before an anonymizer is signed, and whether they found it.

The file is YAML, and every key is a rule that can only fail closed: what nobody measured does not pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from server.records import Dropped
from spact_models.attacker_names import check_attackers
from spact_models.errors import UserError
from spact_models.gate import ATTACKS, Judgement, Question
from spact_models.learned import LEARNED
from spact_models.nearest import known_names
from spact_models.plain_yaml import read_plain_yaml
from spact_models.rules import require

REQUIRED = ("sites", "leakage", "utility")


@dataclass(frozen=True)
class Policy:
    """Shares lie in 0…1. Leakage is scaled: 0 is guessing, 1 is always right (spact_models/gate.py)."""

    sites: int  # at least so many must have judged, with enough videos and attackers that see through raw video
    leakage: float  # at most: the worst site's strongest attacker
    utility: float  # at least: the worst labelled site's action top-1 on anonymised video; 0 = not asked
    pessimistic: bool = True  # hold the bad end of each 95 % interval against the rule, not the mean
    leakage_share: float = 1.0  # at most, of what the strongest attacker finds on raw video at the same site
    utility_share: float = 0.0  # at least, of a fresh action network's top-1 on raw video at the same site
    raw_leakage: float = 0.5  # attackers that find less than this on raw video say nothing of the anonymised
    learned: float = 0.0  # attackers that knew less of their own training clips are no evidence; 0 = not asked
    videos: int = 20  # a question put to fewer held-out videos is no evidence
    silent_sites: int = 0  # so many connected sites may fail to judge: the worst one must not be the silent one
    labelled_sites: int = 1  # so many must tell utility, unless utility and utility_share are 0
    questions: tuple[str, ...] = ()  # private ones that each counted site must have asked, such as identity
    attackers: tuple[str, ...] = ()  # fresh ones by name; empty: the preset's

    def __post_init__(self) -> None:
        for name in ("sites", "videos", "labelled_sites"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(self.silent_sites >= 0, "silent_sites", self.silent_sites, "must be at least 0")
        for name in ("leakage", "utility", "leakage_share", "utility_share", "raw_leakage", "learned"):
            value = getattr(self, name)
            require(math.isfinite(value) and 0 <= value <= 1, name, value, "must be within 0 and 1")
        require(
            self.raw_leakage > 0, "raw_leakage", self.raw_leakage, "must be above 0: a blind attacker proves nothing"
        )
        for name in self.questions:
            require(name in ATTACKS, "questions", name, f"must be among: {', '.join(ATTACKS)}")
        for key in ("questions", "attackers"):
            named = getattr(self, key)
            require(len(set(named)) == len(named), key, list(named), "names one twice")
        check_attackers(self.attackers)  # here, before a signature is taken away and every site answers with this error

    @property
    def asks_utility(self) -> bool:
        return self.utility > 0 or self.utility_share > 0

    def to_json(self) -> dict[str, Any]:
        plain = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def load_policy(path: Path) -> Policy:
    """Read and check a policy.

    Raises:
        UserError: naming file, key, value, rule and remedy.
    """
    try:
        tree = read_plain_yaml(path.read_bytes())
    except OSError as error:
        raise UserError(f"policy {path}: {error.strerror or error}. docs/release.md shows one.") from None
    except UserError as error:
        raise UserError(f"policy {path}: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"policy {path}: must hold keys and values such as `leakage: 0.2`; docs/release.md shows one.")
    try:
        return Policy(**_checked(tree))
    except UserError as error:
        raise UserError(f"policy {path}: {error}") from None


def _checked(tree: Mapping[Any, Any]) -> dict[str, Any]:
    known = {spec.name: str(spec.type) for spec in fields(Policy)}
    for key in tree:
        if key not in known:
            raise UserError(f"{key}: no such key. {known_names(str(key), known)}")
    for key in REQUIRED:
        if key not in tree:
            raise UserError(f"{key} is missing; a policy says at least {', '.join(REQUIRED)} (docs/release.md)")
    return {key: _typed(key, value, known[key]) for key, value in tree.items()}


def _typed(key: str, value: Any, kind: str) -> Any:
    if kind == "bool":
        require(isinstance(value, bool), key, value, "must be true or false")
        return value
    if kind.startswith("tuple"):
        fine = isinstance(value, list) and all(isinstance(name, str) for name in value)
        require(fine, key, value, "must be a list of names, such as [identity]")
        return tuple(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind == "int":
        require(whole, key, value, "must be a whole number")
        return value
    require(whole or isinstance(value, float), key, value, "must be a number")
    return float(value)


@dataclass(frozen=True)
class SiteJudgement:
    """One site's answer."""

    node: int
    name: str
    judgement: Judgement


@dataclass(frozen=True)
class Decision:
    """Passed, or the reasons why not. ``notes`` are what was left out of account, and why."""

    passed: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = field(default_factory=tuple)


def decide(policy: Policy, sites: Sequence[SiteJudgement], silent: Sequence[Dropped]) -> Decision:
    """Hold what the sites found against the policy. Every rule that fails is named, not the first alone."""
    reasons, notes = [], []
    counted = []
    for site in sites:
        weakness = _weakness(policy, site)
        if weakness is None:
            counted.append(site)
            if early := unfinished(policy, site, LEARNED):
                notes.append(
                    f"site {site.name}: leakage is a lower bound, {_knew(early)}; more judge.steps may find more"
                )
        else:
            notes.append(f"site {site.name} does not count: {weakness}")
    if len(counted) < policy.sites:
        reasons.append(f"{len(counted)} sites count, sites = {policy.sites} are needed")
    if len(silent) > policy.silent_sites:
        who = "; ".join(f"{one.name}: {one.reason}" for one in silent)
        reasons.append(f"{len(silent)} sites did not judge, silent_sites = {policy.silent_sites} may not ({who})")
    for site in sites:  # one that does not count can still fail: what it found, it found
        reasons += _leaks(policy, site)
    reasons += _useless(policy, counted)
    return Decision(not reasons, tuple(reasons), tuple(notes))


def usable(policy: Policy, site: SiteJudgement) -> list[Question]:
    """The private questions that were put to enough videos, and that attackers answer on raw video."""
    enough = [one for one in site.judgement.attacks if one.videos >= policy.videos]
    return [one for one in enough if one.raw_leakage >= policy.raw_leakage]


def unfinished(policy: Policy, site: SiteJudgement, learned: float) -> list[Question]:
    """The private questions put to enough videos whose attackers knew less than ``learned`` of their own clips."""
    enough = [one for one in site.judgement.attacks if one.videos >= policy.videos]
    return [one for one in enough if one.learned is not None and one.learned < learned]


def _knew(early: Sequence[Question]) -> str:
    shares = ", ".join(f"{one.task} {one.learned:g}" for one in early)
    return f"when their steps ended attackers knew less of their own training clips ({shares})"


def _weakness(policy: Policy, site: SiteJudgement) -> str | None:
    """Why a site's judgement is no evidence; None when it is."""
    if site.judgement.attackers < max(1, len(policy.attackers)):
        return f"{site.judgement.attackers} attackers asked, {max(1, len(policy.attackers))} needed"
    if early := unfinished(policy, site, policy.learned):  # one is enough: what leaks most may be what it has not found
        return f"learned = {policy.learned:g} is needed, {_knew(early)} and may find more: give them more judge.steps"
    sound = {one.task for one in usable(policy, site)}
    lacking = [name for name in policy.questions if name not in sound]
    if sound and not lacking:
        return None
    asked = ", ".join(f"{one.task} {one.raw_leakage:.2f} on {one.videos} videos" for one in site.judgement.attacks)
    what = f"question {', '.join(lacking)}" if lacking else "private question"
    rule = f"raw_leakage = {policy.raw_leakage:g} and videos = {policy.videos}"
    return f"no {what} reaches {rule} on raw video ({asked or 'none was asked'})"


def _leaks(policy: Policy, site: SiteJudgement) -> list[str]:
    reasons = []
    for one in site.judgement.attacks:
        if one.videos < policy.videos:
            continue
        found = one.leakage_high if policy.pessimistic else one.leakage
        end = f", {found:.3f} at the bad end of its interval" if policy.pessimistic else ""
        if found > policy.leakage:
            reasons.append(
                f"site {site.name}: the strongest attacker on {one.task} finds {one.leakage:.3f}{end}, "
                f"leakage = {policy.leakage:g} is allowed"
            )
        if one.raw_leakage >= policy.raw_leakage and found > policy.leakage_share * one.raw_leakage:
            reasons.append(
                f"site {site.name}: the strongest attacker on {one.task} finds {one.leakage:.3f}{end}, of "
                f"{one.raw_leakage:.3f} on raw video; leakage_share = {policy.leakage_share:g} of it is allowed"
            )
    return reasons


def _useless(policy: Policy, counted: Sequence[SiteJudgement]) -> list[str]:
    if not policy.asks_utility:
        return []
    asked = [(site, site.judgement.action) for site in counted]
    told = [(site, one) for site, one in asked if one is not None and one.videos >= policy.videos]
    reasons = []
    if len(told) < policy.labelled_sites:
        reasons.append(
            f"{len(told)} counted sites told utility on at least videos = {policy.videos}, "
            f"labelled_sites = {policy.labelled_sites} must"
        )
    for site, one in told:
        kept = min(one.low, one.anonymized) if policy.pessimistic else one.anonymized
        end = f", {kept:.3f} at the bad end of its interval" if policy.pessimistic else ""
        if kept < policy.utility:
            reasons.append(
                f"site {site.name}: a fresh action network reaches {one.anonymized:.3f}{end}, "
                f"utility = {policy.utility:g} is needed"
            )
        if kept < policy.utility_share * one.raw:
            reasons.append(
                f"site {site.name}: a fresh action network reaches {one.anonymized:.3f}{end}, of {one.raw:.3f} on raw "
                f"video; utility_share = {policy.utility_share:g} of it is needed"
            )
    return reasons
