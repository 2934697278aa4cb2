"""One representation, released once, and every fresh network that is let at it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from simulations.protocols.bench import CROPS, IDENTITY, Bench, Pair, matchers
from simulations.protocols.evaluation import ACTION
from simulations.protocols.figures import IN_TURN, Found
from spact_models.anonymizer import ClipTransform
from spact_models.attackers import watches_motion
from spact_models.judge import Answer, Judge
from spact_models.judge_set import JudgeSet
from spact_models.seeds import seed_for
from spact_models.settings import Settings
from spact_models.workshop import Workshop

if TYPE_CHECKING:
    from simulations.protocols.suite import Suite

STILLS = 6  # columns of a reconstruction's picture


class Attacks:
    """Lets fresh networks at one representation after the other.

    The next one is released and its networks queued while the last networks of this one still learn, so that no core
    waits for the end of a representation: at most two are in memory. To be left as a context.
    """

    def __init__(self, suite: Suite, settings: Settings, bench: Bench, device: torch.device, bar: Any) -> None:
        self._suite, self._settings, self._bench, self._device, self._bar = suite, settings, bench, device, bar
        self._stop = threading.Event()
        self._workshop = Workshop(device, self._stop.set)

    def __enter__(self) -> Attacks:
        self._workshop.__enter__()
        return self

    def __exit__(self, *about: Any) -> None:
        self._workshop.__exit__(*about)

    def on(self, named: Mapping[str, ClipTransform]) -> Iterator[tuple[str, Found]]:
        """Each representation with what was found, in their order."""
        begun: tuple[str, Callable[[], Found]] | None = None
        for name, transform in named.items():
            jobs = _jobs(self._suite, self._settings, self._bench, name, transform, self._device, self._step)
            following = name, self._workshop.begin(jobs)
            if begun is not None:
                yield begun[0], begun[1]()
            self._bar.set_postfix_str(name)
            begun = following
        if begun is not None:
            yield begun[0], begun[1]()

    def _step(self) -> None:
        if self._stop.is_set():  # one beside this failed, or the user interrupted
            raise KeyboardInterrupt
        self._bar.update()


def _jobs(
    suite: Suite,
    settings: Settings,
    bench: Bench,
    name: str,
    transform: ClipTransform,
    device: torch.device,
    step: Callable[[], object],
) -> dict[tuple[str, str, int], Callable[[], Any]]:
    """Release one representation; every fresh network that is to be let at it, the longest first."""
    named: Any = settings.networks  # a name that the settings have checked, where the judge wants literal types
    judge = Judge(settings.judge, named.action, device, 0, settings.precision, step)
    raw = bench.source(name)
    released = None if raw is None else (raw[0].through(transform, device), raw[1].through(transform, device))
    jobs: dict[tuple[str, str, int], Callable[[], Any]] = {}
    for seed in suite.seeds:
        seeded = replace(judge, seed=seed_for("judge", seed))
        if bench.videos is not None and released is not None:  # restored is what the camera saw, blackened or not
            asked = replace(suite, inversion=suite.inversion and name not in bench.delivered)
            found = _video_jobs(asked, bench, seeded, bench.videos, released)
            jobs |= {(*key, seed): job for key, job in found.items()}
        if bench.attributed is not None and (seen := _seen(bench, released, name, transform, device)) is not None:
            for attacker in on_attributes(suite, seen):
                jobs["attributes", attacker, seed] = partial(seeded.attributes, *seen, attacker)
    return dict(sorted(jobs.items(), key=_longest_first))


def _video_jobs(
    suite: Suite, bench: Bench, judge: Judge, raw: Pair, released: Pair
) -> dict[tuple[str, str], Callable[[], Any]]:
    jobs: dict[tuple[str, str], Callable[[], Any]] = {}
    if bench.actions:
        jobs[ACTION, ACTION] = partial(judge.action, *released)
    for task in bench.tasks:
        if suite.enough is not None:
            jobs[task, IN_TURN] = partial(_until_sure, judge, released, task, suite.attackers, suite.enough)
        for attacker in suite.attackers:
            if suite.enough is None:
                jobs[task, attacker] = partial(judge.attack, *released, task, attacker)
            for crop, person in CROPS.items() if bench.crops else ():
                jobs[f"{task} ({crop})", attacker] = partial(_attack_cropped, judge, released, task, attacker, person)
    for attacker in matchers(suite) if bench.retrieval else ():
        jobs["retrieval", attacker] = partial(judge.retrieval, *released, attacker)
    if suite.inversion:
        jobs["reconstruction", ""] = partial(
            _reconstructed, judge, raw, released, IDENTITY in bench.tasks, suite.attackers
        )
    return jobs


def _until_sure(judge: Judge, released: Pair, task: str, attackers: Sequence[str], enough: float) -> dict[str, Answer]:
    """One attacker after the other, until one names ``enough`` of the videos: the strongest of more could say no more.

    One job, so that who is asked does not depend on how many cores there are.
    """
    answers: dict[str, Answer] = {}
    for attacker in attackers:
        if any(float(answer.hit_V.mean()) >= enough for answer in answers.values()):
            for _ in range(judge.config.steps):  # the bar counts the steps that are not taken as well
                judge.on_step()
        else:
            answers[attacker] = judge.attack(*released, task, attacker)
    return answers


def _attack_cropped(judge: Judge, released: Pair, task: str, attacker: str, person: bool) -> Answer:
    """The crop is made when its turn comes: one more copy of the clips in memory, not two for every attacker."""
    train, test = (held.cropped(person) for held in released)
    return judge.attack(train, test, task, attacker)


def _reconstructed(judge: Judge, raw: Pair, released: Pair, named: bool, attackers: Sequence[str]) -> dict[str, Any]:
    """A fresh inverter's figures, some of its pictures, and (where people are ``named``) who is seen in them."""
    from spact_models.inversion import invert  # scikit-image, and only --inversion needs it

    back = invert(
        raw[0], released[0], raw[1], released[1], judge.config, judge.device, judge.seed, on_step=judge.on_step
    )
    found: dict[str, Any] = {
        "psnr_db": back.psnr_db_V.numpy(),
        "ssim": back.ssim_V.numpy(),
        "mean_picture_psnr_db": back.floor_psnr_db_V.numpy(),
        "mean_picture_ssim": back.floor_ssim_V.numpy(),
    }
    found["pictures"] = tuple(_stills(held) for held in (raw[1], released[1], back.test))
    if named:
        found["identity"] = {one: judge.attack(back.train, back.test, IDENTITY, one) for one in attackers}
    return found


def _stills(held: JudgeSet) -> np.ndarray:
    """The last frame of clips far apart: uint8 (N,H,W,3). A raw set's lead-in lies in front: last is last in both."""
    clips = torch.linspace(0, len(held.clips_MTHWC) - 1, STILLS).round().long().unique()  # type: ignore[no-untyped-call]
    stills_NHWC: np.ndarray = held.clips_MTHWC[clips, -1].cpu().numpy()
    return stills_NHWC


def _seen(
    bench: Bench, released: Pair | None, name: str, transform: ClipTransform, device: torch.device
) -> Pair | None:
    """The released rows that carry the attributes; None where this representation cannot be made of them."""
    assert bench.attributed is not None
    if released is not None and bench.videos is not None and _same_clips(bench.attributed, bench.videos):
        pairs = zip(released, bench.attributed, strict=True)
        return tuple(replace(held, attributes_VA=labels.attributes_VA) for held, labels in pairs)  # type: ignore[return-value]
    if bench.other_files(name) or transform.history > bench.attributed[0].lead_in_frames:
        note = f"attributes of {name}: not of still images, which hold no motion, no boxes and no delivered files"
        if note not in bench.not_measured:
            bench.not_measured.append(note)
        return None
    return bench.attributed[0].through(transform, device), bench.attributed[1].through(transform, device)


def _same_clips(one: Pair, other: Pair) -> bool:
    return all(a.clips_MTHWC is b.clips_MTHWC for a, b in zip(one, other, strict=True))


def on_attributes(suite: Suite, seen: Pair) -> list[str]:
    """The attackers that can look: a video-level one sees nothing more in a still image."""
    still = seen[0].clips_MTHWC.shape[1] == 1
    return [name for name in suite.attackers if not (still and watches_motion(name))]


def _longest_first(job: tuple[tuple[str, str, int], object]) -> bool:
    """False sorts first: clips cost more than frames, and a long job begun last keeps one core waiting."""
    task, attacker, _ = job[0]
    return not (task in (ACTION, "reconstruction") or attacker == IN_TURN or watches_motion(attacker))


def steps(suite: Suite, settings: Settings, bench: Bench) -> int:
    """Optimizer steps for one representation, about: the bar's length."""
    networks = 0
    if bench.videos is not None:
        each = len(suite.attackers) * (1 + len(CROPS) * bench.crops)
        networks = bool(bench.actions) + each * len(bench.tasks) + len(matchers(suite)) * bench.retrieval
        networks += (1 + len(suite.attackers) * bool(bench.tasks)) * suite.inversion
    if bench.attributed is not None:
        networks += len(on_attributes(suite, bench.attributed))
    return networks * len(suite.seeds) * settings.judge.steps
