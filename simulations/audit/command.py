"""``fedspact audit``: what a site's update, the networks and the noise give away, by attack.

Four attacks: clips restored from an update, videos that were trained on told from others, a person's presence at a
site told from its update, and canaries against the promised epsilon. ``audit.json`` is written after each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spact_models.errors import UserError
from spact_models.files import check_writable

if TYPE_CHECKING:
    from simulations.audit.attacks import Case
    from simulations.audit.findings import Audit, Finding

NAMES = ("inversion", "membership", "property", "canary")  # in the order of attacks.ATTACKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact audit``."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--data", type=Path, metavar="MANIFEST", help="default: the run's own rows")
    parser.add_argument("--only", metavar="A,B", help=f"attacks (default: {','.join(NAMES)})")
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


def run(args: argparse.Namespace) -> int:
    """Attack, show the table, write ``audit.json``."""
    from simulations.audit.attacks import ATTACKS, expected_steps, person_of
    from simulations.audit.findings import FILE, table
    from simulations.progress import progress_bar

    attacks = _attacks(args.only)
    if args.noise <= 0:
        raise UserError(f"--noise {args.noise}: must be above 0")
    started = time.monotonic()
    out = args.out or args.run / FILE
    case, model = _open(args, out)
    if "property" in attacks:
        person_of(case)  # a mistake in its name is said before anything else is tried
    findings: list[Finding] = []
    for name in attacks:
        steps = expected_steps(case, name)
        with progress_bar(name, "step", steps, shown=steps > 0) as bar:
            findings.extend(ATTACKS[name](case, bar.update))
        _audit(case, model, findings, attacks, started).write(out)
    if findings:
        print(table(findings))
    for note in case.not_measured:
        print(f"not measured: {note}")
    print(f"\n{out}")
    return 0


def _attacks(text: str | None) -> list[str]:
    chosen = [name.strip() for name in (text or ",".join(NAMES)).split(",") if name.strip()]
    odd = [name for name in chosen if name not in NAMES]
    if odd or not chosen:
        raise UserError(f"--only {text}: must be out of {', '.join(NAMES)}")
    return chosen


def _open(args: argparse.Namespace, out: Path) -> tuple[Case, dict[str, Any]]:
    from client.video.cache import FrameCache
    from server.runs import RunFolder
    from simulations.audit.attacks import QUICK, Budget, Case
    from simulations.audit.findings import FILE
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
    check_writable(out, "--out", FILE)
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
