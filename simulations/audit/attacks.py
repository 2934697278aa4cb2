"""The four attacks of ``fedspact audit`` on one run, each a series of findings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch

from client.held import Read, build_set, lead_in_of
from client.training import on_step as training_step
from client.video.cache import FrameCache
from client.video.rows import Row
from server.budget import schedule_costs
from simulations.audit import canary, membership
from simulations.audit import property_inference as presence
from simulations.audit import update_inversion as inversion
from simulations.audit.findings import Finding, interval
from spact_models.accounting import schedule_steps
from spact_models.action import ActionName
from spact_models.errors import UserError
from spact_models.judge import Judge
from spact_models.judge_set import JudgeSet
from spact_models.networks import Networks
from spact_models.noise import SecretStream
from spact_models.settings import Settings
from spact_models.views import to_float_BCTHW


@dataclass(frozen=True)
class Budget:
    """How hard the attacks try."""

    inversion_steps: int = 200
    inversion_clips: int = 6  # attacked with batches of one
    shadows: int = 8
    sites: int = 40  # of property inference
    site_videos: int = 12
    canaries: int = 1000


LEAST_VIDEOS = 4  # of the person that the property attack looks for, and of others
QUICK = Budget(inversion_steps=80, inversion_clips=3, shadows=4, sites=20, canaries=400)


@dataclass
class Case:
    """What every attack has before it."""

    networks: Networks
    settings: Settings
    classes: list[str]
    rows: list[Row]
    cache: FrameCache
    device: torch.device
    budget: Budget
    seed: int
    noise: float
    column: str
    person: str | None
    not_measured: list[str] = field(default_factory=list)

    @property
    def train(self) -> list[Row]:
        return [row for row in self.rows if row.split == "train"]

    @property
    def bound(self) -> float:
        """What an update is clipped to where the run has no bound of its own: 1."""
        return self.settings.update_bound or 1.0


def invert_updates(case: Case, on_step: Callable[[], object]) -> Iterator[Finding]:
    """Clips restored from one step's update: one clip, the run's batch, then clipped, noised and summed."""
    rows = [row for row in case.train if row.action in case.classes]
    singly, together = case.budget.inversion_clips, case.settings.batch.clips
    needed = singly + min(together, singly) + 1
    if len(rows) < needed:
        case.not_measured.append(
            f"update inversion: {len(rows)} training videos with an action of the run, at least {needed} are needed: "
            f"{singly} restored one by one, as many as the run's batch, and others to tell them from"
        )
        return
    held = _held(case, rows, clips=1)
    rng = torch.Generator().manual_seed(case.seed)
    order = torch.randperm(held.videos, generator=rng).tolist()
    pictures = _pictures(case, held)
    labels = held.labels["action"]
    batch = min(together, held.videos // 2)
    singles, many = order[:singly], order[-batch:]
    others = pictures[order[singly:-batch][:64]]
    steps, bound, members = case.budget.inversion_steps, case.bound, max(3, case.settings.rounds.min_sites)

    def target(chosen: Sequence[int]) -> inversion.Target:
        shown, known = pictures[chosen].to(case.device), labels[chosen].to(case.device)
        noise = inversion.noise_for(case.networks, shown, case.seed)
        found = inversion.gradient_of(case.networks, shown, known, noise)
        shape, brightness = tuple(shown.shape), float(others.mean())
        return inversion.Target([part.detach() for part in found], known, noise, shape, brightness)

    def finding(condition: str, tries: Sequence[tuple[inversion.Target, Sequence[int]]]) -> Finding:
        told = inversion.Restored([], [], [])
        for number, (aim, chosen) in enumerate(tries):
            restored = inversion.invert(case.networks, aim, steps, case.seed + number, on_step)
            one = inversion.compare(restored, pictures[chosen], others)
            told.psnr_db.extend(one.psnr_db)
            told.ssim.extend(one.ssim)
            told.matched.extend(one.matched)
        return _restored_finding(condition, told, guess)

    mean_picture = pictures[many].mean(dim=0, keepdim=True)
    guess = sum(inversion.compare(mean_picture, pictures[[one]], others).ssim[0] for one in singles) / len(singles)
    plain = [(target([one]), [one]) for one in singles]
    yield finding("plain update, one clip", plain)
    yield finding(f"plain update, {batch} clips", [(target(many), many)])
    clipped = [
        (replace(aim, direction=inversion.noised(aim.direction, bound, 0.0, 0)), chosen) for aim, chosen in plain
    ]
    yield finding(f"clipped to {bound:g}, one clip", clipped)
    noised = [
        (
            replace(aim, direction=inversion.noised(aim.direction, bound, case.noise * bound, case.seed + number)),
            chosen,
        )
        for number, (aim, chosen) in enumerate(plain)
    ]
    yield finding(f"clipped and noised, z = {case.noise:g}, one clip", noised)
    sums = [order[start : start + members] for start in range(0, len(singles), members)]
    yield finding(f"secure sum of {members} sites, one clip each", [(target(chosen), chosen) for chosen in sums])


def _restored_finding(condition: str, told: Any, guess: float) -> Finding:
    low, high = interval(told.ssim) if len(told.ssim) > 1 else (None, None)
    more = {
        "psnr_db": sum(told.psnr_db) / len(told.psnr_db),
        "told_apart": sum(told.matched) / len(told.matched),
    }
    return Finding("update inversion", condition, "ssim", sum(told.ssim) / len(told.ssim), low, high, guess, more)


def infer_membership(case: Case, on_step: Callable[[], object]) -> Iterator[Finding]:
    """Which videos f_T was trained on."""
    rows = [row for row in case.rows if row.action in case.classes]
    if len(rows) < 2:
        case.not_measured.append(
            f"membership: {len(rows)} videos with an action of the run, at least 2 are needed: a shadow learns on half"
        )
        return
    held = _held(case, rows, case.settings.judge.train_clips).through(case.networks.anonymizer, case.device)
    action = cast(ActionName, case.settings.networks.action)
    judge = Judge(case.settings.judge, action, case.device, case.seed, on_step=on_step)
    sure, known = membership.shadows(held, judge, case.budget.shadows, case.seed)
    member = np.array([row.split == "train" for row in rows])
    exact = membership.against_shadows(sure, known)
    yield _membership_finding("shadow f_T's, halves of one set", exact)
    if member.all() or not member.any():
        case.not_measured.append("membership in the run's own f_T: the rows have no held-out videos")
        return
    with torch.no_grad():
        own = membership.against(case.networks.action, held, member, judge, sure, known)
    yield _membership_finding("the run's own f_T, training against held-out videos", own)


def _membership_finding(condition: str, found: Any) -> Finding:
    more = {"found_at_1_percent_false_alarms": found.caught}
    return Finding("membership", condition, "auc", found.auc, found.auc_low, found.auc_high, 0.5, more)


def infer_property(case: Case, on_step: Callable[[], object]) -> Iterator[Finding]:
    """Whether a site holds a person's videos."""
    person, rows = person_of(case)
    if person is None:
        case.not_measured.append(
            f"property: no column {case.column!r} with a value in at least {LEAST_VIDEOS} training videos"
        )
        return
    others = sum(row.attributes[case.column] != person for row in rows)
    if others < LEAST_VIDEOS:
        case.not_measured.append(
            f"property: {others} training videos of others than {person} in column {case.column!r}, at least "
            f"{LEAST_VIDEOS} are needed for sites without"
        )
        return
    sites = presence.sites_of(rows, case.column, person, case.budget.sites, case.budget.site_videos, case.seed)
    held = np.array([has_it for _, has_it in sites])
    token = training_step.set(on_step)
    try:
        updates = [
            presence.update_of(mine, case.networks, case.settings, case.classes, case.cache, f"site-{number}")
            for number, (mine, _) in enumerate(sites)
        ]
    finally:
        training_step.reset(token)
    members, rng = max(3, case.settings.rounds.min_sites), np.random.default_rng(case.seed)
    sent = np.stack([presence.flat(update) for update in updates])
    if case.settings.dp.unit == "videos":
        conditions = {
            "update, noised at the site": sent,
            f"secure sum of {members} such": presence.summed(sent, members, rng),
        }
    else:
        bound = case.settings.update_bound or presence.middle_length(updates)
        clipped = presence.clipped_all(updates, bound)
        summed = presence.summed(clipped, members, rng)
        noise = SecretStream().normal(clipped.size).reshape(clipped.shape) * case.noise * bound
        conditions = {
            "plain update": sent,
            f"clipped to {bound:.3g}": clipped,
            f"clipped and noised, z = {case.noise:g}": clipped + noise,
            f"secure sum of {members} sites": summed,
            f"secure sum of {members} sites, noised, z = {case.noise:g}": summed + noise / members,
        }
    for condition, seen in conditions.items():
        auc, low, high = presence.auc_of(seen, held, case.seed)
        more = {"sites": len(sites), "videos_a_site": case.budget.site_videos}
        yield Finding("property", f"{case.column} {person}: {condition}", "auc", auc, low, high, 0.5, more)


def count_canaries(case: Case, on_step: Callable[[], object]) -> Iterator[Finding]:
    """What canaries prove of epsilon, beside what is claimed."""
    settings = case.settings
    if not settings.dp.on:
        case.not_measured.append("canary: the run promises no epsilon (dp.unit = 'none')")
        return
    taken = np.random.default_rng(case.seed).random(case.budget.canaries) < 0.5
    if settings.dp.unit == "videos":
        seen = canary.scores_videos(settings.dp, sum(schedule_steps(settings)), taken, SecretStream(), on_step)
    else:
        seen = canary.scores_sites(settings, settings.total_rounds, taken)
    found = canary.proved(seen, taken, settings.dp.delta)
    claimed = schedule_costs(settings)[-1]
    more = {"claimed": claimed, "delta": settings.dp.delta, "guesses": found.guesses, "right": found.right}
    yield Finding(
        "canary", f"{settings.dp.unit}, the whole schedule", "epsilon proved", found.epsilon, None, None, 0.0, more
    )


def _held(case: Case, rows: Sequence[Row], clips: int) -> JudgeSet:
    labels = torch.tensor([case.classes.index(row.action) if row.action in case.classes else -1 for row in rows])
    return build_set(rows, case.cache, case.settings.clip, Read(clips, lead_in_of(case.settings)), {"action": labels})


def _pictures(case: Case, held: JudgeSet) -> torch.Tensor:
    """What f_A's U-Net sees of each clip, (V, C, T, H, W) on the CPU: the attacks' truth."""
    f_A = case.networks.anonymizer
    surplus = held.lead_in_frames - f_A.history
    with torch.no_grad():
        return f_A.picture(to_float_BCTHW(held.clips_MTHWC)[:, :, surplus:])


def expected_steps(case: Case, name: str) -> int:
    """About how often an attack calls back: the progress bar's length."""
    budget, settings = case.budget, case.settings
    sums = math.ceil(budget.inversion_clips / max(3, settings.rounds.min_sites))
    game = settings.game.catch_up_steps + settings.rounds.cycles * (1 + settings.game.critic_steps)
    return {
        "inversion": budget.inversion_steps * (3 * budget.inversion_clips + 1 + sums),
        "membership": budget.shadows * settings.judge.steps,
        "property": budget.sites * game,
        "canary": sum(schedule_steps(settings)) if settings.dp.unit == "videos" else 0,
    }[name]


def person_of(case: Case) -> tuple[str | None, list[Row]]:
    """Whom the property attack looks for, and the training rows that say who is in them; None: there is nobody.

    Raises:
        UserError: the person who was asked for stands in too few of them.
    """
    rows = [row for row in case.train if row.attributes.get(case.column)]
    counts = Counter(row.attributes[case.column] for row in rows)
    if case.person is not None:
        if counts[case.person] < LEAST_VIDEOS:
            commonest = ", ".join(name for name, _ in counts.most_common(5))
            raise UserError(
                f"--person {case.person}: stands in {counts[case.person]} training videos of column {case.column!r}, "
                f"at least {LEAST_VIDEOS} are needed; the commonest are {commonest}"
            )
        return case.person, rows
    common = counts.most_common(1)
    return (common[0][0] if common and common[0][1] >= LEAST_VIDEOS else None), rows


ATTACKS: dict[str, Callable[[Case, Callable[[], object]], Iterator[Finding]]] = {
    "inversion": invert_updates,
    "membership": infer_membership,
    "property": infer_property,
    "canary": count_canaries,
}
