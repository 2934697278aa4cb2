"""``fedspact audit``: what a site's update, the networks and the noise give away, by attack.

Four attacks: clips restored from an update, videos that were trained on told from others, a person's presence at a
site told from its update, and canaries against the promised epsilon. ``audit.json`` is written after each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from spact_models.errors import UserError

if TYPE_CHECKING:
    import torch

    from client.video.cache import FrameCache
    from client.video.rows import Row
    from simulations.audit.findings import Audit, Finding
    from spact_models.action import ActionName
    from spact_models.judge_set import JudgeSet
    from spact_models.networks import Networks
    from spact_models.settings import Settings

ATTACKS = ("inversion", "membership", "property", "canary")


@dataclass(frozen=True)
class Budget:
    """How hard the attacks try."""

    inversion_steps: int = 200
    inversion_clips: int = 6  # attacked with batches of one
    shadows: int = 8
    sites: int = 40  # of property inference
    site_videos: int = 12
    canaries: int = 1000


QUICK = Budget(inversion_steps=80, inversion_clips=3, shadows=4, sites=20, canaries=400)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact audit``."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--data", type=Path, metavar="MANIFEST", help="default: the run's own rows")
    parser.add_argument("--only", metavar="A,B", help=f"attacks (default: {','.join(ATTACKS)})")
    parser.add_argument(
        "--column", metavar="NAME", help="the private column of the property attack (default: identity)"
    )
    parser.add_argument("--person", metavar="VALUE", help="its value to look for (default: the commonest)")
    parser.add_argument("--noise", type=float, default=1.0, metavar="Z", help="of the noised conditions (default: 1)")
    parser.add_argument(
        "--quick", action="store_true", help="fewer steps, shadows, sites: minutes; the attacks are weak"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the attacks (default: 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/audit.json")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="decoded frames (default: RUN/cache, or runs/cache)")


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


def run(args: argparse.Namespace) -> int:
    """Attack, show the table, write ``audit.json``."""
    from tqdm import tqdm

    from simulations.audit.findings import FILE, table

    attacks = _attacks(args.only)
    if args.noise <= 0:
        raise UserError(f"--noise {args.noise}: must be above 0")
    started = time.monotonic()
    case, model = _open(args)
    if "property" in attacks:
        _person(case)  # a mistake in its name is said before anything else is tried
    out = args.out or args.run / FILE
    findings: list[Finding] = []
    kinds = {
        "inversion": invert_updates,
        "membership": infer_membership,
        "property": infer_property,
        "canary": count_canaries,
    }
    for name in attacks:
        with tqdm(desc=name, unit="step", leave=False) as bar:
            findings.extend(kinds[name](case, bar.update))
        _audit(case, model, findings, attacks, started).write(out)
    print(table(findings))
    for note in case.not_measured:
        print(f"not measured: {note}")
    print(f"\n{out}")
    return 0


def invert_updates(case: Case, on_step: Callable[[], object]) -> Iterator[Finding]:
    """Clips restored from one step's update: one clip, the run's batch, then clipped, noised and summed."""
    import torch

    from simulations.audit import update_inversion as attack

    held = _held(case, [row for row in case.train if row.action is not None], clips=1)
    rng = torch.Generator().manual_seed(case.seed)
    order = torch.randperm(held.videos, generator=rng).tolist()
    pictures = _pictures(case, held)
    labels = held.labels["action"]
    batch = min(case.settings.batch.clips, held.videos // 2)
    singles, many = order[: case.budget.inversion_clips], order[-batch:]
    others = pictures[order[case.budget.inversion_clips : -batch][:64]]
    steps, bound, members = case.budget.inversion_steps, case.bound, max(3, case.settings.rounds.min_sites)

    def target(chosen: Sequence[int]) -> attack.Target:
        noise = attack.noise_for(case.networks, pictures[chosen], case.seed)
        found = attack.gradient_of(case.networks, pictures[chosen], labels[chosen], noise)
        shape, brightness = tuple(pictures[chosen].shape), float(others.mean())
        return attack.Target([part.detach() for part in found], labels[chosen], noise, shape, brightness)

    def finding(condition: str, tries: Sequence[tuple[attack.Target, Sequence[int]]]) -> Finding:
        told = attack.Restored([], [], [])
        for number, (aim, chosen) in enumerate(tries):
            restored = attack.invert(case.networks, aim, steps, case.seed + number, on_step)
            one = attack.compare(restored, pictures[chosen], others)
            told.psnr_db.extend(one.psnr_db)
            told.ssim.extend(one.ssim)
            told.matched.extend(one.matched)
        return _restored_finding(condition, told, guess)

    mean_picture = pictures[many].mean(dim=0, keepdim=True)
    guess = sum(attack.compare(mean_picture, pictures[[one]], others).ssim[0] for one in singles) / len(singles)
    plain = [(target([one]), [one]) for one in singles]
    yield finding("plain update, one clip", plain)
    yield finding(f"plain update, {batch} clips", [(target(many), many)])
    clipped = [(replace(aim, direction=attack.noised(aim.direction, bound, 0.0, 0)), chosen) for aim, chosen in plain]
    yield finding(f"clipped to {bound:g}, one clip", clipped)
    noised = [
        (replace(aim, direction=attack.noised(aim.direction, bound, case.noise * bound, case.seed + number)), chosen)
        for number, (aim, chosen) in enumerate(plain)
    ]
    yield finding(f"clipped and noised, z = {case.noise:g}, one clip", noised)
    sums = [order[start : start + members] for start in range(0, len(singles), members)]
    yield finding(f"secure sum of {members} sites, one clip each", [(target(chosen), chosen) for chosen in sums])


def _restored_finding(condition: str, told: Any, guess: float) -> Finding:
    from simulations.audit.findings import Finding, interval

    low, high = interval(told.ssim) if len(told.ssim) > 1 else (None, None)
    more = {
        "psnr_db": sum(told.psnr_db) / len(told.psnr_db),
        "told_apart": sum(told.matched) / len(told.matched),
    }
    return Finding("update inversion", condition, "ssim", sum(told.ssim) / len(told.ssim), low, high, guess, more)


def infer_membership(case: Case, on_step: Callable[[], object]) -> Iterator[Finding]:
    """Which videos f_T was trained on."""
    import numpy as np
    import torch

    from simulations.audit import membership as attack
    from spact_models.judge import Judge

    rows = [row for row in case.rows if row.action in case.classes]
    held = _held(case, rows, case.settings.judge.train_clips).through(case.networks.anonymizer, case.device)
    action = cast("ActionName", case.settings.networks.action)
    judge = Judge(case.settings.judge, action, case.device, case.seed, on_step=on_step)
    sure, known = attack.shadows(held, judge, case.budget.shadows, case.seed, lambda: None)
    member = np.array([row.split == "train" for row in rows])
    exact = attack.against_shadows(sure, known)
    yield _membership_finding("shadow f_T's, halves of one set", exact)
    if member.all() or not member.any():
        case.not_measured.append("membership in the run's own f_T: the rows have no held-out videos")
        return
    with torch.no_grad():
        own = attack.against(case.networks.action, held, member, judge, sure, known)
    yield _membership_finding("the run's own f_T, training against held-out videos", own)


def _membership_finding(condition: str, found: Any) -> Finding:
    from simulations.audit.findings import Finding

    more = {"found_at_1_percent_false_alarms": found.caught}
    return Finding("membership", condition, "auc", found.auc, found.auc_low, found.auc_high, 0.5, more)


def infer_property(case: Case, on_step: Callable[[], object]) -> Iterator[Finding]:
    """Whether a site holds a person's videos."""
    import numpy as np

    from client.training import on_step as training_step
    from simulations.audit import property_inference as attack
    from simulations.audit.findings import Finding
    from spact_models.noise import SecretStream

    person, rows = _person(case)
    if person is None:
        case.not_measured.append(f"property: no column {case.column!r} with a value in at least 4 training videos")
        return
    sites = attack.sites_of(rows, case.column, person, case.budget.sites, case.budget.site_videos, case.seed)
    held = np.array([has_it for _, has_it in sites])
    token = training_step.set(on_step)
    try:
        updates = [
            attack.update_of(mine, case.networks, case.settings, case.classes, case.cache, f"site-{number}")
            for number, (mine, _) in enumerate(sites)
        ]
    finally:
        training_step.reset(token)
    members, rng = max(3, case.settings.rounds.min_sites), np.random.default_rng(case.seed)
    sent = np.stack([attack.flat(update) for update in updates])
    if case.settings.dp.unit == "videos":
        conditions = {
            "update, noised at the site": sent,
            f"secure sum of {members} such": attack.summed(sent, members, rng),
        }
    else:
        bound = case.settings.update_bound or attack.middle_length(updates)
        clipped = attack.clipped_all(updates, bound)
        summed = attack.summed(clipped, members, rng)
        noise = SecretStream().normal(clipped.size).reshape(clipped.shape) * case.noise * bound
        conditions = {
            "plain update": sent,
            f"clipped to {bound:.3g}": clipped,
            f"clipped and noised, z = {case.noise:g}": clipped + noise,
            f"secure sum of {members} sites": summed,
            f"secure sum of {members} sites, noised, z = {case.noise:g}": summed + noise / members,
        }
    for condition, seen in conditions.items():
        auc, low, high = attack.auc_of(seen, held, case.seed)
        more = {"sites": len(sites), "videos_a_site": case.budget.site_videos}
        yield Finding("property", f"{case.column} {person}: {condition}", "auc", auc, low, high, 0.5, more)


def count_canaries(case: Case, on_step: Callable[[], object]) -> Iterator[Finding]:
    """What canaries prove of epsilon, beside what is claimed."""
    import numpy as np

    from server.budget import schedule_costs
    from simulations.audit import canary
    from simulations.audit.findings import Finding
    from spact_models.accounting import schedule_steps
    from spact_models.noise import SecretStream

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


def _attacks(text: str | None) -> list[str]:
    chosen = [name.strip() for name in (text or ",".join(ATTACKS)).split(",") if name.strip()]
    odd = [name for name in chosen if name not in ATTACKS]
    if odd or not chosen:
        raise UserError(f"--only {text}: must be out of {', '.join(ATTACKS)}")
    return chosen


def _open(args: argparse.Namespace) -> tuple[Case, dict[str, Any]]:
    from client.video.cache import FrameCache
    from server.runs import RunFolder
    from simulations.laboratory import DATA, readable
    from simulations.partition import load_rows
    from spact_models.checkpoint import load_checkpoint
    from spact_models.networks import networks_from_checkpoint
    from spact_models.seeds import pick_device

    folder = RunFolder.open(args.run)
    kept = list(folder.checkpoints().items())
    if not kept:
        raise UserError(f"{args.run}: no checkpoint yet; audit a run that has finished a round")
    number, file = kept[-1]
    networks, settings, classes = networks_from_checkpoint(load_checkpoint(file))
    manifest = args.data or args.run / DATA
    if not manifest.is_file():
        raise UserError(f"{args.run}: no {DATA} of its own; say with --data on what to attack")
    device = pick_device(args.device or "auto")
    networks.anonymizer.to(device)
    networks.action.to(device)
    own = args.run / "cache"
    cache = FrameCache(args.cache or (own if own.is_dir() else Path("runs/cache")), settings.clip.size_px)
    rows = readable(
        load_rows(manifest, settings.simulation, settings.seed), cache, settings.simulation.unreadable_share
    )
    budget = QUICK if args.quick else Budget()
    case = Case(
        networks, settings, classes, rows, cache, device, budget, args.seed, args.noise, args.column or "identity",
        args.person,
    )  # fmt: skip
    return case, {"run": str(args.run), "round": number, "preset": settings.preset, "manifest": str(manifest)}


def _held(case: Case, rows: Sequence[Row], clips: int) -> JudgeSet:
    import torch

    from client.held import Read, build_set

    labels = torch.tensor([case.classes.index(row.action) if row.action in case.classes else -1 for row in rows])
    return build_set(rows, case.cache, case.settings.clip, Read(clips), {"action": labels})


def _pictures(case: Case, held: JudgeSet) -> torch.Tensor:
    """What f_A's U-Net sees of each clip, (V, C, T, H, W) on the CPU: the attacks' truth."""
    import torch

    from spact_models.views import to_float_BCTHW

    f_A = case.networks.anonymizer
    surplus = held.lead_in_frames - f_A.history
    with torch.no_grad():
        return f_A.picture(to_float_BCTHW(held.clips_MTHWC)[:, :, surplus:])


def _person(case: Case) -> tuple[str | None, list[Row]]:
    from collections import Counter

    rows = [row for row in case.train if row.attributes.get(case.column)]
    counts = Counter(row.attributes[case.column] for row in rows)
    if case.person is not None:
        if counts[case.person] < 4:
            raise UserError(
                f"--person {case.person}: stands in {counts[case.person]} training videos of column {case.column!r}, "
                f"at least 4 are needed; the commonest are {', '.join(name for name, _ in counts.most_common(5))}"
            )
        return case.person, rows
    common = counts.most_common(1)
    return (common[0][0] if common and common[0][1] >= 4 else None), rows


def _audit(
    case: Case, model: dict[str, Any], findings: Sequence[Finding], attacks: Sequence[str], started: float
) -> Audit:
    from dataclasses import asdict

    from simulations.audit.findings import Audit
    from simulations.protocols.suite import machine, versions

    told = {**asdict(case.budget), "seed": case.seed, "noise": case.noise, "attacks": list(attacks)}
    return Audit(
        model=model,
        settings=told,
        findings=list(findings),
        not_measured=list(case.not_measured),
        versions=versions(),
        machine=machine(case.device),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 1),
    )
