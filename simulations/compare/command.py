"""From flags to a plan, from a plan to cells, from cells to the result."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from client.held import attackable, single_clips
from client.video.cache import FrameCache
from client.video.rows import Row, class_names, read_rows
from simulations import compare as flags
from simulations.compare.collect import comparison
from simulations.compare.folder import RESULT, ComparisonFolder, write_json
from simulations.compare.plan import ARMS, BASELINES, FEDERATED, LOCAL, Cell, Order, Plan, parse_names, parse_seeds
from simulations.compare.table import table
from simulations.compare.workers import make_cells
from simulations.federated import refuse_local_statistics
from simulations.laboratory import readable, settings_from
from simulations.partition import load_rows, partition
from simulations.protocols.bench import BLACKENED
from simulations.protocols.evaluation import ACTION
from simulations.protocols.plans import action_is_kept
from simulations.synthetic import SynthConfig, planned_rows, synthesize
from spact_models import __version__
from spact_models.attackers import ATTACKERS
from spact_models.errors import UserError
from spact_models.interrupted import go_on_with
from spact_models.obfuscations import OBFUSCATIONS
from spact_models.resident import cores
from spact_models.seeds import pick_device
from spact_models.settings import Settings, SimulationConfig

RAW = "raw"
LEAST_VIDEOS = 2  # of a site: a pair of views needs another video to differ from


def compare(args: argparse.Namespace) -> int:
    """The verb. Exit status 0 when every cell is made, whatever the verdicts."""
    settings = _settings(args)
    folder = ComparisonFolder(args.out)
    workers = _workers(args.workers, settings)
    with folder.held(), go_on_with(lambda: "go on with: the same command again; finished cells are kept"):
        manifest = _manifest(args, folder, settings)
        rows = load_rows(manifest, settings.simulation, settings.seed)
        views = None if args.views is None else read_rows(args.views, must_exist=False)
        plan = _plan(args, settings, manifest, rows)
        check_plan(plan, rows)
        lender = None if args.trained is None else ComparisonFolder(args.trained)
        if lender is not None:
            lender.check_lends(plan)
        folder.begin(plan)
        cache = args.cache or folder.path / "cache"
        with redirect_stdout(sys.stderr):  # what cannot be read is named there
            rows, views = _decoded(rows, views, settings, cache)
        folder.write_data(rows, views)
        cells = plan.cells()
        missing = [cell for cell in cells if folder.finished(cell) is None]
        if len(missing) < len(cells) and not args.json:
            print(f"{len(cells) - len(missing)} of {len(cells)} cells are finished already", flush=True)
        if lender is not None and missing and not args.json:
            lent = sum(cell.trained and lender.finished(cell) is not None for cell in missing)
            print(f"the networks of {lent} of {len(missing)} cells come from {lender.path}", flush=True)
        trained = None if lender is None else lender.path
        make_cells(
            [Order(plan, cell, folder.path, cache.absolute(), folder.log_path(cell), trained) for cell in missing],
            workers,
        )
        result = comparison(folder, plan, rows)
        write_json(folder.path / RESULT, result)
    print(json.dumps(result, indent=2, allow_nan=False) if args.json else table(result))
    if not args.json:
        print(f"\n{folder.path / RESULT}")
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    """As the run commands do; a comparison keeps only each run's last checkpoint unless more are asked for."""
    quick = [f"{key}={value}" for key, value in flags.QUICK.items()] if args.quick else []
    words = argparse.Namespace(**{**vars(args), "assignments": [*quick, *args.assignments], "seed": None, "out": None})
    settings = settings_from(words, {"simulation.sites": args.sites} if args.sites is not None else None)
    refuse_local_statistics(settings)
    if settings.simulation.unlabelled_sites:
        raise UserError(
            f"simulation.unlabelled_sites = {settings.simulation.unlabelled_sites}, must be 0 in a comparison: a site "
            "without labels takes fewer steps, and alone it learns no action"
        )
    pick_device(settings.device)
    if settings.rounds.keep_checkpoints == 0:
        settings = replace(settings, rounds=replace(settings.rounds, keep_checkpoints=1))
    return settings


def _plan(args: argparse.Namespace, settings: Settings, manifest: Path, rows: Sequence[Row]) -> Plan:
    quick = args.quick
    seeds = args.seeds or (flags.QUICK_SEEDS if quick else flags.SEEDS)
    partitions = args.partitions or (flags.QUICK_PARTITIONS if quick else flags.PARTITIONS)
    attackers = args.attackers or (flags.QUICK_ATTACKERS if quick else "")
    obfuscations = (*OBFUSCATIONS, BLACKENED) if _boxed(rows) else tuple(OBFUSCATIONS)
    baselines = args.baselines or (flags.QUICK_BASELINES if quick else ",".join(obfuscations))
    arms = parse_names("--arms", args.arms, ARMS)
    named = parse_names("--baselines", baselines, obfuscations) if BASELINES in arms else ()
    own = ("seed", "run_dir", "simulation.partition_by", "simulation.sites")
    return Plan(
        manifest=str(manifest.absolute()),
        manifest_sha256=hashlib.sha256(manifest.read_bytes()).hexdigest(),
        views=str(args.views.absolute()) if args.views is not None else "",
        views_sha256=hashlib.sha256(args.views.read_bytes()).hexdigest() if args.views is not None else "",
        sites=settings.simulation.sites,
        seeds=parse_seeds(seeds),
        partitions=parse_names("--partitions", partitions),
        arms=arms,
        baselines=(RAW, *(name for name in named if name != RAW)) if named else (),  # raw stands beside every figure
        task=args.task,
        attackers=parse_names("--attackers", attackers, ATTACKERS) if attackers else (),
        version=__version__,
        settings={key: value for key, value in settings.flat().items() if key not in own},
    )


def _boxed(rows: Sequence[Row]) -> bool:
    """Whether people can be blackened: every video says where they stand."""
    return all(row.boxes is not None for row in rows if not row.is_image)


def check_plan(plan: Plan, rows: Sequence[Row]) -> None:
    """Everything that can be known before hours of work.

    Raises:
        UserError: actions that cannot be learned, a task that is the action or cannot be attacked, a class with a
            single clip, a partition that cannot be dealt.
    """
    train, test = ([row for row in rows if row.split == split] for split in ("train", "test"))
    actions = class_names(train)
    if len(actions) < 2 or not any(row.action in actions for row in test):
        raise UserError(
            f"--data {plan.manifest}: utility needs two actions or more in training rows and one of them in test rows, "
            f"here are {', '.join(actions) or 'none'}; label the column action"
        )
    columns = [*dict.fromkeys(name for row in rows for name in row.attributes), "source", "site"]
    known = [name for name in columns if attackable(train, test, name)]
    if plan.task == ACTION:
        raise action_is_kept(known)
    for column in (ACTION, plan.task):
        if told := single_clips(train, test, column):
            raise UserError(f"--data {plan.manifest}: {told}")
    if not attackable(train, test, plan.task):
        raise UserError(
            f"--task {plan.task}: cannot be attacked; it needs two values or more in training rows, and test rows with "
            f"none but those. This manifest allows: {', '.join(known) or 'none'}"
        )
    names = [cell.name for cell in plan.cells()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--partitions: two of them would share the folder {twice[0]}; leave one out")
    if not {FEDERATED, LOCAL} & set(plan.arms):
        return
    for seed in plan.seeds:
        for name in plan.partitions:
            _check_partition(plan.settings_of(Cell(FEDERATED, seed, name)).simulation, rows, seed, name)


def _check_partition(config: SimulationConfig, rows: Sequence[Row], seed: int, name: str) -> None:
    try:
        shares = partition(rows, config, seed)
    except UserError as error:
        raise UserError(f"--partitions {name}, seed {seed}: {error}") from None
    for number, share in enumerate(shares, start=1):
        held = sum(row.split == "train" for row in share)
        if held < LEAST_VIDEOS:
            raise UserError(
                f"--partitions {name}, seed {seed}: site {number} would have {held} training video(s), must be at "
                f"least {LEAST_VIDEOS}; ask for fewer --sites, another seed or a larger concentration"
            )


def _manifest(args: argparse.Namespace, folder: ComparisonFolder, settings: Settings) -> Path:
    if args.data is not None:
        if not args.data.is_file():
            raise UserError(f"--data {args.data}: does not exist; write a manifest with `fedspact index`")
        return Path(args.data)
    if not args.quick:
        raise UserError("--data: is missing; name a manifest, or add --quick to compare on videos made for it")
    made = folder.path / "synthetic" / "manifest.csv"
    if not made.is_file():  # the manifest is written last: a set with one is complete
        config = SynthConfig(sites=args.sites if args.sites is not None else SynthConfig().sites)
        rows = planned_rows(config, made.parent)
        for name in parse_names("--partitions", args.partitions or flags.QUICK_PARTITIONS):  # before a minute's filming
            dealt = replace(settings.simulation, partition_by=name, sites=config.sites)
            for seed in parse_seeds(args.seeds or flags.QUICK_SEEDS):
                _check_partition(dealt, rows, seed, name)
        synthesize(config, made.parent, force=True)
    return made


def _decoded(
    rows: list[Row], views: list[Row] | None, settings: Settings, cache_folder: Path
) -> tuple[list[Row], list[Row] | None]:
    """Decode once, before the cells begin: they only read."""
    cache, share = FrameCache(cache_folder, settings.clip.size_px), settings.simulation.unreadable_share
    return readable(rows, cache, share), None if views is None else readable(views, cache, share)


def _workers(asked: int | None, settings: Settings) -> int:
    if asked is not None and asked < 1:
        raise UserError(f"--workers {asked}: must be at least 1")
    on_cpu = pick_device(settings.device).type == "cpu"
    return asked or (cores() if on_cpu else 1)
