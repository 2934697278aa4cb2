"""One cell: train as its arm says, judge with fresh networks, keep every hit of every test video."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from client.video.rows import Row, read_rows
from server.runs import SUMMARY, RunFolder
from simulations.centralized import centralize, play_alone
from simulations.compare.folder import DATA, RECORD, VIEWS, ComparisonFolder, mark_begun, write_record
from simulations.compare.plan import CENTRALIZED, FEDERATED, Cell, Order, Steps
from simulations.federated import deal_out, simulate
from simulations.laboratory import Laboratory, export_anonymizer, keep_rows, summary
from simulations.protocols.bench import ANONYMIZED
from simulations.protocols.evaluation import FILE
from simulations.protocols.suite import Suite, judge_suite
from spact_models.anonymizer import ClipTransform
from spact_models.checkpoint import ANONYMIZER_FILE
from spact_models.errors import UserError
from spact_models.obfuscations import by_name
from spact_models.resident import peak_rss_mb
from spact_models.seeds import pick_device
from spact_models.settings import Settings

HITS = "hits.npz"


@dataclass(frozen=True)
class Training:
    """What training cost."""

    steps: int
    bytes_up: int
    bytes_down: int
    seconds: float
    peak_rss_mb: float


def make_cell(order: Order) -> Path:
    """Train and judge one cell; its folder appears under its own name when all of it is on the disk.

    Raises:
        UserError: a setting, a row or a disk that does not allow it.
    """
    folder, cell = ComparisonFolder(order.folder), order.cell
    settings = order.plan.settings_of(cell)
    rows = read_rows(folder.path / DATA, must_exist=False)
    views = read_rows(folder.path / VIEWS, must_exist=False) if order.plan.views else None
    part = folder.begin_cell(cell)
    with RunFolder(part, settings.rounds.keep_checkpoints) as run:
        mark_begun(part)
        lab = Laboratory(settings, run, rows, order.cache, time.monotonic(), views)
        lent = _lent(lab, order)
        training = lent or (_train(lab, order) if cell.trained else None)
        judged = _judge(lab, order)
    cost = None if training is None else asdict(training)
    lender = str(order.trained) if lent is not None else None
    write_record(part, {"cell": asdict(cell), "training": cost, "trained_in": lender, **judged})
    return folder.finish_cell(cell)


def _lent(lab: Laboratory, order: Order) -> Training | None:
    """What another comparison trained for this cell, copied without its judgement; None where it has not."""
    if order.trained is None or not order.cell.trained:
        return None
    lender = ComparisonFolder(order.trained)
    record = lender.finished(order.cell)
    if record is None:
        return None
    judgement = shutil.ignore_patterns(HITS, FILE, SUMMARY, RECORD)
    try:
        shutil.copytree(lender.cell_path(order.cell), lab.run.path, ignore=judgement, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise UserError(f"--trained {order.trained}: {order.cell.name} cannot be copied ({error})") from None
    before, now = lab.run.settings(), lab.settings.flat()
    changed = {key: value for key, value in now.items() if before.get(key) != value}
    lab.run.note_resumed(now, lab.settings.total_rounds, changed)
    return Training(**record["training"])


def _train(lab: Laboratory, order: Order) -> Training:
    cell, started = order.cell, time.monotonic()
    with counted_steps() as count:
        if cell.arm == FEDERATED:
            simulate(lab)
        elif cell.arm == CENTRALIZED:
            centralize(lab)
        else:
            assert cell.site is not None
            files = deal_out(lab.run.path, lab.rows, lab.settings, lab.cache_folder, lab.views)
            play_alone(lab, lab.settings, files[cell.site - 1])
    check_steps(order.plan.steps_of(cell), count[0], cell, lab.rows)
    keep_rows(lab)
    for state in lab.run.path.glob("sites/*/state"):
        shutil.rmtree(state)  # f_B and optimizers of every site: larger than all the rest, and of no more use
    lines = lab.run.history()
    return Training(
        steps=count[0],
        bytes_up=sum(line["bytes_up"] for line in lines),
        bytes_down=sum(line["bytes_down"] for line in lines),
        seconds=round(time.monotonic() - started, 2),
        peak_rss_mb=round(peak_rss_mb(), 1),
    )


@contextmanager
def counted_steps() -> Iterator[list[int]]:
    """Counts the steps of every network's optimizer in this process: what was done, not what was asked for.

    The server's step is none of them: it moves plain tensors, not a network's parameters.
    """
    count = [0]

    def one_more(optimizer: torch.optim.Optimizer, *_: object) -> None:
        count[0] += isinstance(optimizer.param_groups[0]["params"][0], torch.nn.Parameter)

    hook = register_optimizer_step_post_hook(one_more)
    try:
        yield count
    finally:
        hook.remove()


def check_steps(wanted: Steps | None, taken: int, cell: Cell, rows: Sequence[Row]) -> None:
    """Arms are compared at equal steps or not at all.

    Where some clips have no label, a batch without any teaches f_T nothing and its step is left out.
    """
    all_labelled = all(row.action is not None for row in rows)
    if wanted is not None and (taken > wanted.total or (all_labelled and taken != wanted.total)):
        raise RuntimeError(f"{cell.name}: {taken} optimizer steps were taken, {wanted.total} are its share")


def _judge(lab: Laboratory, order: Order) -> dict[str, Any]:
    """Fresh networks on the pooled rows, the same for every arm of a seed; writes the evaluation and the hits."""
    started, trained = time.monotonic(), order.cell.trained
    shown = ANONYMIZED if trained else order.cell.arm
    suite = Suite(
        protocol="identity",
        tasks=(order.plan.task,),
        representations=(shown,),
        attackers=order.plan.attackers,
        seeds=(order.cell.seed,),
        retrieval=False,
    )
    device = pick_device(lab.settings.device)
    anonymizer: ClipTransform = export_anonymizer(lab.run) if trained else by_name("raw")
    model = _model(order, lab.settings) if trained else None
    evaluation, hits = judge_suite(
        anonymizer, lab.settings, lab.rows, lab.cache, device, suite, progress=False, model=model
    )
    kept: dict[str, Any] = {
        f"{task}/{name}": np.asarray(hit, dtype=bool)
        for task, answers in hits[shown].items()
        for name, hit in answers.items()
    }
    if "action/action" not in kept or not any(key.startswith(f"{order.plan.task}/") for key in kept):
        raise UserError(f"{order.cell.name}: the judge could ask about {', '.join(kept) or 'nothing'} only")
    with (lab.run.path / HITS).open("wb") as file:
        np.savez_compressed(file, **kept)
    evaluation.write(lab.run.path / FILE)
    if trained:
        sites = order.plan.sites if order.cell.arm == FEDERATED else 1
        lab.run.write_summary(summary(lab, evaluation, sites, order.cell.arm, device))
    return {
        "judge_seconds": round(time.monotonic() - started, 2),
        "judge_peak_rss_mb": round(peak_rss_mb(), 1),
        "chance": {task: evaluation.chance[task] for task in ("action", order.plan.task)},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def _model(order: Order, settings: Settings) -> dict[str, Any]:
    """What was judged, by the name that the cell will have."""
    return {
        "path": str(ComparisonFolder(order.folder).cell_path(order.cell) / ANONYMIZER_FILE),
        "kind": settings.networks.anonymizer,
        "preset": settings.preset,
        "size_px": settings.clip.size_px,
        "frames": settings.clip.frames,
    }
