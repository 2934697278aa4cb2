"""Figures in words: names, percentages, and the page's first sentences, which say it when a target is missed."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simulations.report.collect import RunStory
from simulations.report.judged import ANONYMIZED, RAW, Attack, Figure, Judged, Seen

THIN = "\u202f"  # narrow no-break space between a number and its unit
MINUS = "\u2212"
AT_LEAST = "≥\u202f"
TARGET_ACTION = 0.97  # of raw (issue 3): what counts as kept
TARGET_LEAKAGE = 0.05  # above chance: what counts as hidden
NAMES = {
    "raw": "raw",
    "greyscale": "greyscale",
    "downsample2x": "downsampled 2×",
    "downsample4x": "downsampled 4×",
    "blur_weak": "weak blur",
    "blur_strong": "strong blur",
    "pixelate": "pixelated",
    "blackened": "people blacked out",
    "difference_grey": "grey difference",
    "difference1bit": "one-bit difference",
    "blur_difference_quantise": "blur–difference–quantise",
    "bdq": "blur–difference–quantise",
    "anonymized": "anonymized",
    "retrieval_all": "retrieval among all",
    "retrieval_same_source": "retrieval in one source",
    "psnr_db": "PSNR",
    "ssim": "SSIM",
}


@dataclass(frozen=True)
class Sentence:
    """A sentence with its tone: ``good``, ``bad`` or ``plain``; the tone is in the words too, never in colour alone."""

    text: str
    tone: str = "plain"


def name_of(key: str) -> str:
    """A representation's, task's or attacker's name for readers."""
    return NAMES.get(key, key.replace("_", " "))


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}{THIN}%"


def measured(figure: Figure) -> str:
    """A figure's share; ``≥`` where its network had not learned its own training clips."""
    return f"{AT_LEAST if figure.at_least else ''}{percent(figure.mean)}"


def points(difference: float | None, digits: int = 1) -> str:
    """A difference of two shares in percentage points, with its sign."""
    if difference is None:
        return "–"
    rounded = round(100 * difference, digits) + 0.0  # no minus before a zero
    return f"{'+' if rounded > 0 else MINUS if rounded < 0 else '±'}{abs(rounded):.{digits}f}"


def interval(figure: Figure | None) -> str:
    """The 95 % interval, empty where none was computed."""
    if figure is None or figure.low is None or figure.high is None:
        return ""
    return f"{100 * figure.low:.1f}–{100 * figure.high:.1f}"


def counted(count: int, thing: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def byte_size(count: float | None) -> str:
    """Decimal units, as networks are billed."""
    if count is None:
        return "–"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{THIN}{unit}" if count < 1000 * size else f"{count / size:,.0f}{THIN}{unit}"
    return f"{count:.0f}{THIN}B"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f}{THIN}s" if seconds < 10 else f"{seconds:.0f}{THIN}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60:02d}{THIN}s"
    return f"{whole // 3600}{THIN}h {whole % 3600 // 60:02d}{THIN}min"


def moment(iso: str | None) -> str:
    """``2026-11-25 02:00 UTC``; an odd text stays as it is."""
    try:
        when = datetime.datetime.fromisoformat(iso or "")
    except ValueError:
        return iso or "–"
    zone = when.tzinfo or datetime.UTC
    return when.replace(tzinfo=zone).astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def headline(run: RunStory) -> Sentence:
    """What the anonymizer keeps and hides, in one sentence."""
    if run.judged is None or (run.judged.main_task is None and run.judged.representations[ANONYMIZED].action is None):
        state = (
            "finished"
            if run.finished
            else f"stands after round\u00a0{run.rounds_done}\u00a0of\u00a0{run.rounds_planned}"
        )
        return Sentence(f"Not judged yet: the game {state}, and no fresh network has looked at its pictures.")
    judged = run.judged
    seen, task = judged.representations[ANONYMIZED], judged.main_task
    kept = _kept(seen, judged.representations.get(RAW), judged.chance.get("action"))
    if task is None:
        return Sentence(f"{kept}; no private question could be asked.")
    return Sentence(f"{kept}; {_found(task, seen.attacks[task], judged.chance.get(task))}.")


def _kept(seen: Seen, raw: Seen | None, chance: float | None) -> str:
    if seen.action is None:
        return "The action could not be measured"
    level = f"A fresh network names the action in {_in_words(seen.action)} of held-out videos"
    if raw is None or raw.action is None:
        return f"{level} (raw video was not judged)"
    on_raw = f"raw video: {_in_words(raw.action)}"
    if raw.action.at_least:  # what there was to keep is not known, so no share of it is told
        return f"{level} ({on_raw}, by a network that had not learned its own training clips)"
    if raw.action.mean <= (chance or 0) or seen.action.mean > raw.action.mean:
        return f"{level} ({on_raw})"
    return f"Keeps {_in_words(replace(seen.action, mean=seen.action.mean / raw.action.mean))} of the action"


def _found(task: str, attack: Attack, chance: float | None) -> str:
    found = attack.leakage.mean
    close = chance is not None and abs(found - chance) < 0.02
    level = f"(chance\u00a0{percent(chance, 1 if close else 0)})" if chance is not None else "(chance unknown)"
    share = _in_words(attack.leakage, 1 if close else 0)
    who = (
        f"the strongest of {len(attack.attackers)} fresh attackers" if len(attack.attackers) > 1 else "a fresh attacker"
    )
    if attack.metric == "cmap":
        return f"{who} reaches a class-mean precision of {share} on private attributes {level}"
    if task == "retrieval_all":
        return f"{who} finds a video again among all others in {share} of tries {level}"
    if task == "retrieval_same_source":
        return f"{who} finds a video again among those of its source in {share} of tries {level}"
    asked = {"identity": "the person", "source": "the camera or recording"}.get(task, f"the {name_of(task)}")
    return f"{who} names {asked} in {share} of held-out videos {level}"


def _in_words(figure: Figure, digits: int = 0) -> str:
    """A figure's share in a sentence; ``at least`` where :func:`measured` has ``≥``."""
    return f"{'at least ' if figure.at_least else ''}{percent(figure.mean, digits)}"


def verdicts(run: RunStory) -> list[Sentence]:
    """Whether the target is met, and what the baselines do."""
    judged = run.judged
    if judged is None or judged.main_task is None:
        return []
    seen = judged.representations[ANONYMIZED]
    weak = _weak_judge(judged, judged.main_task)
    if weak is not None:
        return [weak]
    found = [_target(judged, seen), _against_baselines(judged, seen)]
    return [sentence for sentence in found if sentence is not None]


def also_judged(run: RunStory) -> list[str]:
    """A line for each other judgement in the run's folder: how it was made, where it stands, its key figures."""
    present = run.judged.model.get("sha256") if run.judged else None
    lines = []
    for one in run.also_judged:
        by = f"protocol {one.described['protocol']} with {counted(len(one.seeds), 'seed')}"
        other = present is not None and one.model.get("sha256") not in (None, present)
        whose = f" of another anonymizer ({Path(one.model.get('path', 'unknown')).name})" if other else ""
        stands = f"judged by {by} on {moment(one.described['created'])}{whose}: {one.source}."
        anonymized = ANONYMIZED in one.representations
        lines.append(f"Also {stands} {_key(one)}." if anonymized else f"Baselines alone were {stands}")
    return [*lines, *(f"A judgement that cannot be read: {reason}" for reason in run.unread)]


def _key(judged: Judged) -> str:
    """Action and strongest attacker of the anonymized videos, as the tiles name them."""
    seen, task = judged.representations[ANONYMIZED], judged.main_task
    raw, told = judged.representations.get(RAW), []
    if seen.action is not None:
        told.append(f"Action {_beside(seen.action, raw.action if raw else None, judged.chance.get('action'))}")
    if task is not None:
        leakage = _beside(seen.attacks[task].leakage, raw.leakage(task) if raw else None, judged.chance.get(task))
        told.append(f"strongest attacker on {name_of(task)} {leakage}")
    return "; ".join(told) or "It could measure nothing"


def _beside(figure: Figure, raw: Figure | None, chance: float | None) -> str:
    on_raw = f"raw\u00a0{measured(raw)}, " if raw else ""
    return f"{measured(figure)} ({on_raw}chance\u00a0{percent(chance)})"


def _weak_judge(judged: Judged, task: str) -> Sentence | None:
    """Where fresh networks cannot do on raw video what the anonymizer is to prevent or to keep, no verdict is due."""
    raw = judged.representations.get(RAW)
    leakage = raw.leakage(task) if raw else None
    blind = []
    if raw and raw.action and raw.action.mean <= judged.chance.get("action", 0.0):
        blind.append("the fresh action network")
    if leakage and leakage.mean <= judged.chance.get(task, 0.0) + TARGET_LEAKAGE:
        blind.append("the strongest attacker")
    if not blind:
        return None
    verb = "does" if len(blind) == 1 else "do"
    return Sentence(
        f"This judgement proves nothing yet: on raw video {' and '.join(blind)} {verb} hardly better than chance. Give "
        "the fresh networks more steps or more training videos.",
        "bad",
    )


def _target(judged: Judged, seen: Seen) -> Sentence | None:
    raw, chance, leakage = judged.representations.get(RAW), judged.chance.get("identity"), seen.leakage("identity")
    if raw is None or raw.action is None or seen.action is None or leakage is None or chance is None:
        return None
    aim = f"The target, {percent(TARGET_ACTION, 0)} of raw's action with identity at most 5 points above chance, is"
    short = TARGET_ACTION * raw.action.mean - seen.action.mean
    over = leakage.mean - chance - TARGET_LEAKAGE
    missing = []
    unsure = seen.action.at_least, raw.action.at_least  # of both nobody knows how far it is short
    if short > 0 and not all(unsure):
        bound = "at most " if unsure[0] else "at least " if unsure[1] else ""
        missing.append(f"the action is {bound}{_size(short)} short")
    if over > 0:
        missing.append(f"identity is {'at least ' if leakage.at_least else ''}{_size(over)} over it")
    if over > 0 or (short > 0 and not seen.action.at_least):
        return Sentence(f"{aim} missed: {' and '.join(missing)}.", "bad")
    hurried = {"the action network": seen.action, "that on raw video": raw.action, "an attacker": leakage}
    for who, figure in hurried.items():
        if figure.at_least:
            knew = f"was right in only {percent(figure.learned, 0)} of its own training clips when its steps ended"
            return Sentence(f"{aim} not shown to be met: {who} {knew}. Give it more.", "bad")
    return Sentence(f"{aim} met.", "good")


def _size(difference: float) -> str:
    return f"{100 * difference:.1f} points" if difference >= 0.0005 else "less than 0.1 points"


def _against_baselines(judged: Judged, seen: Seen) -> Sentence | None:
    """A baseline beats the anonymizer where it keeps at least as much and leaks at most as much."""
    task = judged.main_task
    ours = _place(seen, task)
    others = {
        name: _place(told, task) for name, told in judged.representations.items() if name not in (ANONYMIZED, RAW)
    }
    rivals = {name: place for name, place in others.items() if place is not None}
    if ours is None or not rivals:
        return None
    better = [name for name, place in rivals.items() if _beats(place, ours)]
    if better:
        told = [_told(name, rivals[name], task, ours) for name in better]
        verb = "does" if len(better) == 1 else "do"
        return Sentence(f"Not ahead of every baseline: {'; '.join(told)} {verb} at least as well on both.", "bad")
    beaten = sum(_beats(ours, place) for place in rivals.values())
    if beaten == len(rivals):
        counted = "the one baseline" if beaten == 1 else f"each of the {beaten} baselines"
        return Sentence(f"Ahead of {counted} on both counts.", "good")
    return Sentence(
        f"No baseline does better on both counts; it is itself ahead of {beaten} of {len(rivals)} on both, "
        "and against the others one has to choose."
    )


def _place(seen: Seen, task: str | None) -> tuple[Figure, Figure] | None:
    leakage = seen.leakage(task) if task else None
    return (seen.action, leakage) if seen.action is not None and leakage is not None else None


def _beats(one: tuple[Figure, Figure], other: tuple[Figure, Figure]) -> bool:
    gain, saved = one[0].mean - other[0].mean, other[1].mean - one[1].mean
    return gain >= 0 and saved >= 0 and gain + saved > 0


def _told(name: str, place: tuple[Figure, Figure], task: str | None, ours: tuple[Figure, Figure]) -> str:
    within = all(_overlap(mine, theirs) for mine, theirs in zip(ours, place, strict=True))
    extra = ", its 95 % bars overlapping" if within else ""
    figures = f"{measured(place[0])} action, {measured(place[1])} {name_of(task or '')}"
    return f"{name_of(name)} ({figures}{extra})"


def _overlap(one: Figure, other: Figure) -> bool:
    known = None not in (one.low, one.high, other.low, other.high)
    return known and one.low <= other.high and other.low <= one.high  # type: ignore[operator]


def without_folders(path: Path) -> str:
    """A folder as one would type it here; of one that is not below the working folder the name alone.

    A page is passed on and moved: an absolute path would tell its maker's name, and be wrong elsewhere.
    """
    path = path.absolute()
    return shlex.quote(str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name)


def pairs(told: Mapping[str, Any] | None) -> str:
    """``steps 300, batch 32``: a mapping in a line, without what is not known."""
    known = {name: value for name, value in (told or {}).items() if value is not None}
    return ", ".join(f"{name_of(name)} {value}" for name, value in known.items())
