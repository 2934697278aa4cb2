"""What every run of the laboratory shares: its flags, its run folder, its rows, its judgement and its summary."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from client.held import attackable
from client.training import batches_of_round
from client.video.cache import FrameCache, check_share
from client.video.rows import Row, class_names, read_rows, write_rows
from server.budget import privacy_spent
from server.provenance import anonymizer_tensors
from server.runs import RunFolder, default_run_path
from simulations.partition import load_rows, partition
from simulations.protocols.bench import IDENTITY
from simulations.protocols.evaluation import ACTION, Evaluation, Figure
from simulations.protocols.suite import Suite, judge_suite
from simulations.protocols.text import table
from spact_models.anonymizer import Anonymizer
from spact_models.attackers import ONE_OF_EACH
from spact_models.checkpoint import ANONYMIZER_FILE, load_checkpoint, save_checkpoint
from spact_models.errors import UserError
from spact_models.files import writing
from spact_models.interrupted import as_typed, go_on_with
from spact_models.learned import SURE
from spact_models.networks import load_anonymizer
from spact_models.resident import peak_rss_mb
from spact_models.run_config import load_settings, parse_assignment, read_config_file
from spact_models.seeds import pick_device
from spact_models.settings import Settings

DECODING_THREADS = 2
CLOSING = ("raw", "downsample4x", "difference1bit", "anonymized")  # what a run judges when it ends
DATA = "data.csv"  # in the run folder: its rows, their splits decided


@dataclass
class Laboratory:
    """One run in the laboratory."""

    settings: Settings
    run: RunFolder
    rows: list[Row]
    cache_folder: Path
    started: float
    views: list[Row] | None = None  # what f_B learns on where it is another source; None: the clips' own videos
    judged: bool = True  # whether fresh networks judge the run when it ends; `simulate --resume` keeps to it

    @property
    def cache(self) -> FrameCache:
        return FrameCache(self.cache_folder, self.settings.clip.size_px)


def add_run_arguments(parser: argparse.ArgumentParser, data: bool = True, resumable: bool = False) -> None:
    """The flags that every run command has."""
    if data:
        source: argparse._ActionsContainer = parser
        if resumable:
            source = parser.add_mutually_exclusive_group(required=True)
            source.add_argument("--resume", type=Path, metavar="RUN", help="go on with an interrupted run's folder")
        source.add_argument(
            "--data",
            type=Path,
            required=not resumable,
            metavar="MANIFEST",
            help="CSV with a path column (fedspact index)",
        )
        parser.add_argument(
            "--views", type=Path, metavar="MANIFEST", help="videos or images for f_B's views, if others"
        )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run folder (default: runs/<UTC time>)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML overrides, such as flower.toml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments", help="override one setting"
    )
    parser.add_argument("--preset", help="tiny, small or paper (default: tiny)")
    parser.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="decoded frames (default: OUT/cache)")
    if data:
        parser.add_argument("--no-judge", action="store_true", help="train only; `fedspact evaluate` can judge later")


def settings_from(
    args: argparse.Namespace, shorthand: Mapping[str, Any] | None = None, base: Mapping[str, Any] | None = None
) -> Settings:
    """Defaults < ``base`` < ``--config`` < ``--set`` < the flags; a later one wins."""
    flags = {"preset": args.preset, "seed": args.seed, "device": args.device, **(shorthand or {})}
    chosen = {**(base or {}), **(read_config_file(args.config) if args.config else {})}
    chosen.update(parse_assignment(text) for text in args.assignments)
    chosen.update({key: value for key, value in flags.items() if value is not None})
    if args.out is not None:
        chosen["run_dir"] = str(args.out)
    return load_settings(chosen)


def open_laboratory(args: argparse.Namespace, shorthand: Mapping[str, Any] | None = None) -> Laboratory:
    """Check the settings, the device and the manifest, make the run folder and decode what is not in the cache."""
    started = time.monotonic()
    settings = settings_from(args, shorthand)
    pick_device(settings.device)
    rows = load_rows(args.data, settings.simulation, settings.seed)
    check_actions(args.data, rows, settings)
    views = None if args.views is None else read_rows(args.views, must_exist=False)
    partition(rows, settings.simulation, settings.seed)  # a partition that cannot be is said before anything is written
    run = RunFolder(default_run_path(settings.run_dir), settings.rounds.keep_checkpoints)
    run.judged_at_end = not args.no_judge
    lab = Laboratory(settings, run, rows, args.cache or run.path / "cache", started, judged=run.judged_at_end)
    share = settings.simulation.unreadable_share
    with go_on_with(lambda: again(lab)):
        lab.rows = readable(rows, lab.cache, share)
        lab.views = None if views is None else readable(views, lab.cache, share)
        keep_rows(lab)
    return lab


def again(lab: Laboratory) -> str:
    """How to go on where no round has been played yet: what is decoded is kept."""
    return f"go on with: the same command and --out {as_typed(lab.run.path)}; what is decoded is kept"


def check_actions(manifest: Path, rows: Sequence[Row], settings: Settings) -> None:
    """f_T learns actions: some rows must name them, or the settings.

    Raises:
        UserError: fewer than two actions are known.
    """
    actions = class_names(rows)
    if len(settings.action_classes or actions) < 2:
        raise UserError(
            f"--data {manifest}: its rows name {len(actions)} actions{''.join(f' ({name})' for name in actions)}, must "
            "be at least 2, for f_T to learn; fill the column action for some videos, or set "
            'action.classes = "first,second,..."'
        )


def keep_rows(lab: Laboratory) -> None:
    """Write the run's own manifest, splits decided, so that it can be judged again without asking for the data."""
    write_rows(lab.rows, lab.run.path / DATA)


def readable(rows: list[Row], cache: FrameCache, unreadable_share: float) -> list[Row]:
    """The rows whose videos can be decoded; the others are named on the terminal, and too many stop the run."""
    unreadable = cache.prepare([row.path for row in rows], workers=DECODING_THREADS, progress=sys.stderr.isatty())
    for bad in unreadable:
        print(f"not used: {bad.path}: {bad.reason}")
    check_share(unreadable, len(rows), unreadable_share)
    lost = {bad.path for bad in unreadable}
    return [row for row in rows if row.path not in lost]


def batches_of_run(settings: Settings, sites: int) -> int:
    """Batches that all sites together draw in the whole run: the length of the progress bar."""
    rounds = settings.rounds
    asked = min(sites, rounds.sites or sites)
    warmup, game = (batches_of_round(settings, phase) for phase in ("warmup", "minimax"))
    return asked * (rounds.warmup * warmup + rounds.minimax * game)


def export_anonymizer(run: RunFolder) -> Anonymizer:
    """The anonymizer of the last checkpoint, written alone to ``anonymizer.safetensors`` and opened from there."""
    whole = load_checkpoint(list(run.checkpoints().values())[-1])
    path = run.path / ANONYMIZER_FILE
    with writing(path, "free that disk, then go on with --resume: the rounds are whole"):
        save_checkpoint(path, anonymizer_tensors(whole), whole.header)
    return load_anonymizer(path)[0]


def finish(lab: Laboratory, sites: int, kind: str, with_retrieval: bool = True, judged: bool = True) -> Evaluation:
    """Export, judge (unless ``judged`` is off), write ``summary.json`` and show the table."""
    anonymizer = export_anonymizer(lab.run)
    device = pick_device(lab.settings.device)
    suite = closing_suite(lab, with_retrieval, judged)
    evaluation, _ = judge_suite(anonymizer, lab.settings, lab.rows, lab.cache, device, suite, progress=judged)
    lab.run.write_summary(summary(lab, evaluation, sites, kind, device))
    if not judged:
        print(f"run folder: {lab.run.path}\nnext: fedspact evaluate {as_typed(lab.run.path)}")
        return evaluation
    print(table(evaluation))
    videos = f"{evaluation.data['test_videos']} held-out videos, fresh networks trained on "
    print(f"\n{videos}{evaluation.data['train_videos']}; run folder: {lab.run.path}")
    return evaluation


def closing_suite(lab: Laboratory, with_retrieval: bool = True, judged: bool = True) -> Suite:
    """The short judgement at a run's end: one seed, an attacker of each reach; `fedspact evaluate` asks more."""
    train, test = ([row for row in lab.rows if row.split == split] for split in ("train", "test"))
    asked = ONE_OF_EACH[lab.settings.preset]
    return Suite(
        protocol="identity" if attackable(train, test, IDENTITY) else "retrieval",
        tasks=(IDENTITY,),
        representations=CLOSING if judged else (),
        attackers=asked,
        retrieval_attackers=asked[:1],
        seeds=(lab.settings.seed,),
        retrieval=with_retrieval,
        enough=SURE,
    )


def summary(lab: Laboratory, evaluation: Evaluation, sites: int, kind: str, device: torch.device) -> dict[str, Any]:
    """``summary.json``: figures in 0…1, null where the data cannot answer."""
    return {
        "kind": kind,
        "sites": sites,
        "rounds": lab.settings.total_rounds,
        "seed": lab.settings.seed,
        "preset": lab.settings.preset,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "seconds": round(time.monotonic() - lab.started, 1),
        "peak_rss_mb": round(peak_with_children_mb(), 1),
        "bytes_up_per_round": bytes_up_per_round(lab.run),
        **judged_figures(evaluation),
        **privacy_spent(lab.run.path),
        "clip": {"frames": lab.settings.clip.frames, "size_px": lab.settings.clip.size_px},
        "judge": {"action": lab.settings.networks.action, "privacy": lab.settings.networks.privacy},
        "versions": {"torch": torch.__version__},
    }


def judged_figures(evaluation: Evaluation) -> dict[str, Any]:
    """The short judgement as ``summary.json`` holds it: by task and representation, the strongest attacker's figure."""
    rows = {name: evaluation.representations.get(name) for name in CLOSING}
    asked = [IDENTITY, *(task for row in rows.values() if row for task in row.attacks)]
    if "retrieval_all" in asked:
        asked.append("retrieval_same_source")  # null where no two test videos share a source
    tasks = list(dict.fromkeys(asked))
    attack: dict[str, dict[str, float | None]] = {}
    attackers: dict[str, dict[str, dict[str, float]]] = {}
    for task in tasks:
        answered = {name: row.attacks[task] for name, row in rows.items() if row and task in row.attacks}
        figures = {name: answered[name].figure if name in answered else None for name in CLOSING}
        attack[task] = {"chance": evaluation.chance.get(task), **{name: _mean(one) for name, one in figures.items()}}
        if answered:
            attackers[task] = {
                name: {one: figure.mean for one, figure in each.attackers.items()} for name, each in answered.items()
            }
    utility = {name: _mean(row.action) if row else None for name, row in rows.items()}
    learned: dict[str, Any] = {
        task: {
            name: {one: figure.learned for one, figure in row.attacks[task].attackers.items()}
            for name, row in rows.items()
            if row and task in row.attacks
        }
        for task in attackers
    }
    learned[ACTION] = {name: row.action.learned for name, row in rows.items() if row and row.action}
    return {
        "utility": {"chance": evaluation.chance.get(ACTION), **utility},
        "attack": attack,
        "attackers": attackers,
        "learned": learned,
        "train_videos": evaluation.data["train_videos"],
        "test_videos": evaluation.data["test_videos"],
    }


def _mean(figure: Figure | None) -> float | None:
    return None if figure is None else figure.mean


def bytes_up_per_round(run: RunFolder) -> int:
    """Mean bytes that all sites together sent up in one training round; 0 for a centralised run."""
    counted = [line["bytes_up"] for line in run.history() if line["kind"] == "train"]
    return round(sum(counted) / len(counted)) if counted else 0


def peak_with_children_mb() -> float:
    """The larger of this process's and its largest finished child's peak resident memory."""
    return max(peak_rss_mb(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
