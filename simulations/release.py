"""``fedspact release``: the simulated sites of a run judge its anonymizer; on a pass it is signed. Keys and checks too.

Over a deployment ``flwr run`` does the same with ``task = "release"`` (docs/release.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from client.app import make_app
from client.training import on_step
from server.policy import load_policy
from server.release import RESULT, Outcome, release, site_figures
from server.runs import RunFolder
from simulations.inprocess import InProcessGrid
from simulations.partition import SITES, dealt_sites
from simulations.progress import progress_bar
from spact_models.errors import UserError
from spact_models.model_card import UNSTATED
from spact_models.run_config import load_settings, parse_assignment
from spact_models.settings import Settings
from spact_models.signing import fingerprint, make_key, read_private_key, read_public_key, verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact release``."""
    parser.add_argument("what", metavar="RUN|keygen|verify", help="a simulated run's folder; or make a key; or verify")
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="keygen: the new key; verify: the model")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="YAML: what must be found (docs/release.md)")
    parser.add_argument("--key", type=Path, metavar="FILE", help="the private key that signs on a pass")
    parser.add_argument("--licence", default=UNSTATED, metavar="TEXT", help="of the weights, for the model card")
    parser.add_argument(
        "--trust", type=Path, action="append", metavar="FILE", help="verify: a public key (default: the trusted folder)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments", help="judge.* settings"
    )
    parser.add_argument("--seed", type=int, help="of the fresh networks (default: the run's)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")


def run(args: argparse.Namespace) -> int:
    """0: released, made or trusted; 1: not."""
    if args.what in ("keygen", "verify"):
        if args.file is None:
            raise UserError(f"release {args.what}: name a file, for example fedspact release {args.what} FILE")
        return _keygen(args.file) if args.what == "keygen" else _verify(args.file, args.trust)
    if args.file is not None:
        raise UserError(f"release {args.what} {args.file}: a second path has no meaning here; --policy and --key do")
    for name in ("policy", "key"):
        if getattr(args, name) is None:
            raise UserError(f"release {args.what}: --{name} FILE is missing (docs/release.md)")
    return _release(args)


def _release(args: argparse.Namespace) -> int:
    folder = RunFolder.open(Path(args.what))
    policy, key = load_policy(args.policy), read_private_key(args.key)
    settings = _settings(folder, args)
    sites = dealt_sites(folder.path)
    if not sites:
        raise UserError(
            f"{folder.path / SITES}: no simulated sites here. A federation of real sites is asked by flwr run with "
            'task = "release" (docs/release.md).'
        )
    with progress_bar("judge", "step") as bar:
        nodes = [{"site": str(file)} for file in sites]
        grid = InProcessGrid(
            make_app(), nodes, settings.flat(), lambda node, _: bar.set_postfix_str(f"site {node}/{len(nodes)}")
        )
        token = on_step.set(lambda: bar.update() and None)
        try:
            outcome = release(grid, settings, folder, policy, key, args.licence)
        finally:
            on_step.reset(token)
    _show(outcome, folder)
    return 0 if outcome.decision.passed else 1


def _settings(folder: RunFolder, args: argparse.Namespace) -> Settings:
    """The run's own, with this judgement's budget."""
    chosen = {**folder.settings(), "device": args.device or "auto"}
    if args.seed is not None:
        chosen["seed"] = args.seed
    for key, value in map(parse_assignment, args.assignments):
        if not key.startswith("judge.") and key != "rounds.timeout_seconds":
            raise UserError(f"--set {key}: release changes judge.* only; what the anonymizer is stands in its file")
        chosen[key] = value
    return load_settings(chosen)


def _show(outcome: Outcome, folder: RunFolder) -> None:
    print(f"{'site':<16}{'question':<24}{'videos':>7}{'chance':>8}{'raw':>8}{'anon.':>8}{'leakage':>9}{'learned':>9}")
    for site in site_figures(outcome.sites):
        for one in site["questions"]:
            leakage, learned = ("–" if one[name] is None else f"{one[name]:.3f}" for name in ("leakage", "learned"))
            figures = "".join(f"{one[name]:>8.3f}" for name in ("chance", "raw", "anonymized"))
            print(f"{site['name']:<16.15}{one['task']:<24}{one['videos']:>7}{figures}{leakage:>9}{learned:>9}")
    for note in outcome.decision.notes:
        print(f"note: {note}")
    if outcome.decision.passed:
        print(f"\nreleased: {outcome.model}, signed by key {outcome.key}")
    else:
        print("\nnot released, nothing is signed:")
        for reason in outcome.decision.reasons:
            print(f"- {reason}")
    print(folder.path / RESULT)


def _keygen(file: Path) -> int:
    public = make_key(file)
    print(f"{file}: private, keep it to yourself; without it no release of yours can be made")
    print(f"{public}: public, for the trusted keys of those who run your anonymizers")
    print(f"fingerprint: {fingerprint(read_public_key(public))}")
    return 0


def _verify(model: Path, trusted: Sequence[Path] | None) -> int:
    verdict = verify(model, trusted)
    print(f"{verdict.status}: {verdict.reason}")
    return 0 if verdict.trusted else 1
