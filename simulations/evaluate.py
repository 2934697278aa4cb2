"""``fedspact evaluate``: judge a run, a checkpoint or any anonymizer file by a protocol, with fresh networks.

``evaluation.json`` is written after every representation: what is interrupted goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spact_models.errors import UserError
from spact_models.files import check_writable
from spact_models.interrupted import as_typed, go_on_with

if TYPE_CHECKING:
    import torch

    from client.video.cache import FrameCache
    from client.video.rows import Row
    from server.runs import RunFolder
    from simulations.protocols.evaluation import Evaluation
    from simulations.protocols.model import Model
    from simulations.protocols.plans import Data
    from simulations.protocols.suite import Stills, Suite
    from spact_models.settings import Settings

DEFAULT_SEEDS = (0, 1, 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact evaluate``."""
    parser.add_argument("model", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run folder, or a .safetensors file")
    parser.add_argument("--protocol", metavar="NAME", help="known, novel, identity, attributes or retrieval")
    parser.add_argument("--data", type=Path, metavar="MANIFEST", help="default: the run's own rows")
    parser.add_argument("--attributes", type=Path, metavar="MANIFEST", help="rows with the attributes, if others")
    parser.add_argument("--task", metavar="A,B", help="private columns to attack (default: the protocol's)")
    parser.add_argument("--seeds", metavar="N|0,1,2", help="of the fresh networks (default: 3; --quick: 1)")
    parser.add_argument("--attackers", metavar="A,B", help="fresh attackers (default: the preset's)")
    parser.add_argument("--only", metavar="A,B", help="representations to judge (default: all)")
    parser.add_argument(
        "--delivered",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="judge what some tool made of the same videos, too; repeatable",
    )
    parser.add_argument("--rounds", metavar="2,5,9", help="judge the checkpoints of these rounds, too")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="three representations, one seed; no retrieval of people, no second attacker where the first names all",
    )
    parser.add_argument("--recipe", metavar="NAME", help="ucf101-known, hmdb51-novel or pa-hmdb51 (with --root)")
    parser.add_argument("--root", type=Path, metavar="DIR", help="the folder that holds a recipe's data sets")
    parser.add_argument("--inversion", action="store_true", help="a fresh network tries to restore the raw frames")
    parser.add_argument("--crops", action="store_true", help="attackers that see the person only, the background only")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/evaluation.json")
    parser.add_argument("--force", action="store_true", help="judge again what the file already holds")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments", help="judge.* settings"
    )
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="decoded frames (default: RUN/cache, or runs/cache)")


def run(args: argparse.Namespace) -> int:
    """Judge, show the tables, write ``evaluation.json``."""
    from client.video.cache import FrameCache
    from simulations.protocols.evaluation import FILE
    from simulations.protocols.model import open_model
    from simulations.protocols.rounds import checked_rounds
    from spact_models.seeds import pick_device

    model = open_model(args.model)
    rounds = checked_rounds(_run_of(model), _numbers("--rounds", args.rounds)) if args.rounds else []
    if bool(args.recipe) != bool(args.root):
        raise UserError("--recipe and --root go together: the recipe's name, and the folder that holds its data sets")
    settings = _settings(args, model)
    device = pick_device(settings.device)
    data, manifest, attackers = _material(args, model, settings)
    cache = FrameCache(_cache_folder(args, model), settings.clip.size_px)
    suite = _suite(args, data, attackers, settings.preset)
    out = args.out or (args.model / FILE if args.model.is_dir() else None)
    file = _Output(out, manifest, args.recipe, args.force)
    if out is None:
        print("nothing is kept without --out FILE: the figures of this judgement are only shown", file=sys.stderr)
    with go_on_with(lambda: _onward(out, args.force)):
        data = _readable(data, cache, settings)
        delivered = _delivered(args.delivered, data, cache)
        print(f"protocol {suite.protocol}: {len(data.side('train'))} training and {len(data.side('test'))} test videos")
        evaluation = _judge(model, settings, data, cache, device, suite, rounds, file, delivered)
    _show(evaluation, out)
    return 0


def _onward(out: Path | None, forced: bool) -> str:
    if out is None:
        return "begin it again with the same command; nothing is kept without --out FILE"
    without = " without --force" if forced else ""
    return f"go on with: the same command again{without}; what was judged is kept in {as_typed(out)}"


def _delivered(words: Sequence[str], data: Data, cache: FrameCache) -> dict[str, list[Row]]:
    from simulations.laboratory import DECODING_THREADS
    from simulations.protocols.delivered import check_readable, delivered_rows, parse
    from simulations.protocols.suite import REPRESENTATIONS

    folders = parse(words, REPRESENTATIONS)
    if folders and not data.side("train"):
        raise UserError("--delivered: the data hold no videos to which delivered files could belong")
    found = {name: delivered_rows(data.rows, folder) for name, folder in folders.items()}
    files = [row for rows in found.values() for row in rows]
    check_readable(files, cache, DECODING_THREADS, progress=sys.stderr.isatty())
    return found


def _run_of(model: Model) -> RunFolder:
    if model.run is None:
        raise UserError(f"--rounds: {model.path} lies in no run folder, so there are no earlier checkpoints to judge")
    return model.run


def _settings(args: argparse.Namespace, model: Model) -> Settings:
    """The run's own, on this machine's device; a recipe's budget; then --set."""
    from simulations.protocols.recipes import BUDGET
    from spact_models.run_config import load_settings, parse_assignment

    chosen: dict[str, Any] = {**model.trained.flat(), "device": args.device or "auto"}
    if args.recipe:
        chosen.update(BUDGET)
    for key, value in map(parse_assignment, args.assignments):
        if not key.startswith("judge.") and key not in ("precision", "device", "simulation.unreadable_share"):
            raise UserError(f"--set {key}: evaluate changes judge.* only; what the anonymizer is stands in its file")
        chosen[key] = value
    return load_settings(chosen)


def _material(args: argparse.Namespace, model: Model, settings: Settings) -> tuple[Data, str, tuple[str, ...]]:
    """The rows to judge on, where they come from, and a recipe's attackers."""
    from simulations.laboratory import DATA
    from simulations.partition import load_rows
    from simulations.protocols.plans import Data
    from simulations.protocols.recipes import read_recipe

    columns = _names(args.task)
    if args.recipe:
        recipe, found = read_recipe(args.recipe, args.root, columns)
        others = found.rows if found.attribute_rows is None else found.attribute_rows
        data = Data(found.rows, others, model.actions, model.anonymizer.history, found.columns)
        return data, f"{args.recipe} below {args.root}", recipe.attackers
    manifest = args.data
    if manifest is None:
        manifest = model.run.path / DATA if model.run is not None else None
        if manifest is None or not manifest.is_file():
            raise UserError(f"{model.path}: no {DATA} of a run beside it; say with --data what to judge on")
    rows = load_rows(manifest, settings.simulation, model.trained.seed)
    others = load_rows(args.attributes, settings.simulation, model.trained.seed) if args.attributes else rows
    return Data(rows, others, model.actions, model.anonymizer.history, columns), str(manifest), ()


def _suite(args: argparse.Namespace, data: Data, attackers: tuple[str, ...], preset: str) -> Suite:
    from simulations.protocols.plans import check_columns, check_matchers, plan
    from simulations.protocols.suite import QUICK, REPRESENTATIONS
    from spact_models.attackers import CHEAPEST, ONE_OF_EACH, check_attackers
    from spact_models.learned import SURE

    check_columns(_names(args.task), data)
    protocol = _protocol(args, data)
    seeds = _seeds(args.seeds) if args.seeds else DEFAULT_SEEDS[:1] if args.quick else DEFAULT_SEEDS
    names = check_attackers(_names(args.attackers)) or attackers or (ONE_OF_EACH[preset] if args.quick else ())
    check_matchers(protocol, names)
    only = _names(args.only) or (QUICK if args.quick else REPRESENTATIONS)
    if args.crops and not any(row.boxes for row in data.rows):
        raise UserError("--crops: needs to know where people stand, and the manifest has no column boxes")
    suite = plan(
        protocol, data, representations=only, attackers=names, seeds=seeds, crops=args.crops, inversion=args.inversion
    )
    if not args.quick:
        return suite
    return replace(
        suite,
        retrieval=suite.retrieval and not suite.tasks,
        retrieval_attackers=CHEAPEST[preset],
        enough=SURE if len(suite.seeds) == 1 else None,
    )


def _protocol(args: argparse.Namespace, data: Data) -> str:
    """The one that was asked for, else the recipe's, else one that these data can answer."""
    from simulations.protocols.plans import default_protocol
    from simulations.protocols.recipes import RECIPES

    if args.protocol is not None:
        return str(args.protocol)
    if args.recipe:
        return RECIPES[args.recipe].protocol or ("known" if _all_known(data) else "novel")
    protocol = default_protocol(data)
    print(f"no --protocol given: {protocol}, which these data can answer")
    return protocol


def _judge(
    model: Model,
    settings: Settings,
    data: Data,
    cache: FrameCache,
    device: torch.device,
    suite: Suite,
    rounds: Sequence[int],
    file: _Output,
    delivered: Mapping[str, Sequence[Row]],
) -> Evaluation:
    from server.curves import forget_judged
    from server.runs import TENSORBOARD
    from simulations.protocols.rounds import draw_rounds, judge_rounds
    from simulations.protocols.suite import judge_suite

    others = None if data.attribute_rows is data.rows else data.attribute_rows
    evaluation, _ = judge_suite(
        model.anonymizer,
        settings,
        data.rows,
        cache,
        device,
        suite,
        attribute_rows=others,
        model=model.described,
        before=file.before,
        delivered=delivered,
        on_done=file.write,
        on_restored=file.draw,
    )
    if rounds:
        run, held = _run_of(model), evaluation.rounds
        evaluation = judge_rounds(run, rounds, settings, data.rows, cache, device, suite, evaluation, others)
        if evaluation.rounds != held:  # drawn whole, held ones as well, so what was drawn before goes
            forget_judged(run.path / TENSORBOARD)
            draw_rounds(run, evaluation)
    return file.write(evaluation)


class _Output:
    """``evaluation.json``: what it holds already, and what is written to it. A file of other settings is kept aside."""

    def __init__(self, path: Path | None, manifest: str, recipe: str | None, force: bool) -> None:
        from simulations.protocols.evaluation import FILE, read_evaluation

        self.path, self.manifest, self.recipe = path, manifest, recipe
        self.before = None
        if path is not None:
            check_writable(path, "--out", FILE)
        if path is not None and path.exists() and not force:
            self.before = read_evaluation(path)

    def write(self, evaluation: Evaluation) -> Evaluation:
        evaluation = replace(evaluation, data={**evaluation.data, "manifest": self.manifest}, recipe=self.recipe)
        if self.path is None:
            return evaluation
        if self.before is not None and self.before.key != evaluation.key:
            stamp = "".join(letter for letter in self.before.created if letter.isalnum())
            aside = self.path.with_name(f"{self.path.stem}-{stamp}{self.path.suffix}")
            self.path.replace(aside)
            print(f"{self.path.name} was made with other settings or data; kept as {aside.name}")
        self.before = evaluation
        evaluation.write(self.path)
        return evaluation

    def draw(self, name: str, stills: Stills) -> None:
        """The reconstruction attacker's picture, beside the file. It shows raw frames, so it says so."""
        from simulations.pictures import inversion_sheet

        if self.path is None:
            return
        raw_NHWC, seen_NHWC, restored_NHWC = stills
        figures = self.before.representations[name].reconstruction if self.before else None
        psnr, ssim = ((figures or {}).get(key) for key in ("psnr_db", "ssim"))
        caption = f"{psnr.mean:.1f} dB, SSIM {ssim.mean:.2f}" if psnr and ssim else ""
        picture = self.path.parent / "reconstruction" / f"{name}.png"
        inversion_sheet(raw_NHWC, {name: (seen_NHWC, restored_NHWC)}, picture, {name: caption})
        print(f"{picture} (shows raw frames)")


def _readable(data: Data, cache: FrameCache, settings: Settings) -> Data:
    from simulations.laboratory import readable

    share = settings.simulation.unreadable_share
    rows = readable(list(data.rows), cache, share)
    same = data.attribute_rows is data.rows
    return replace(data, rows=rows, attribute_rows=rows if same else readable(list(data.attribute_rows), cache, share))


def _show(evaluation: Evaluation, path: Path | None) -> None:
    from simulations.protocols.text import attackers_table, reconstruction_table, table

    tasks = {task for row in evaluation.representations.values() for task in row.attacks}
    parts = [
        table(evaluation, intervals=len(tasks) <= 3),
        attackers_table(evaluation),
        reconstruction_table(evaluation),
    ]
    print("\n" + "\n\n".join(part for part in parts if part))
    for note in evaluation.not_measured:
        print(f"not measured: {note}")
    if path is not None:
        print(f"\n{path}")


def _cache_folder(args: argparse.Namespace, model: Model) -> Path:
    if args.cache is not None:
        chosen: Path = args.cache
        return chosen
    own = model.run.path / "cache" if model.run is not None else None
    return own if own is not None and own.is_dir() else Path("runs/cache")


def _all_known(data: Data) -> bool:
    return {row.action for row in data.rows if row.action} <= set(data.trained_actions)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _numbers(flag: str, text: str) -> list[int]:
    words = _names(text)
    if not words or not all(word.isdigit() for word in words):
        raise UserError(f"{flag} {text}: must be whole numbers separated by commas")
    return [int(word) for word in words]


def _seeds(text: str) -> tuple[int, ...]:
    """``3`` is 0,1,2; ``7,`` is the seed 7 alone."""
    numbers = _numbers("--seeds", text)
    if "," not in text:
        if numbers[0] < 1:
            raise UserError(f"--seeds {text}: must be at least 1, or a list such as 0,1,2")
        return tuple(range(numbers[0]))
    return tuple(numbers)
