"""One judgement: every representation released once, then attacked by the same fresh networks with the same budget."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from client.video.cache import FrameCache
from client.video.rows import Row
from simulations.progress import progress_bar
from simulations.protocols.attacks import Attacks, steps
from simulations.protocols.bench import ANONYMIZED, BLACKENED, CROPS, Bench, set_up
from simulations.protocols.delivered import digest
from simulations.protocols.evaluation import ACTION, Evaluation, known, now
from simulations.protocols.figures import Hits, hits_of, not_asked, represented, retrieval_chance
from spact_models import __version__
from spact_models.anonymizer import ClipTransform
from spact_models.attackers import DEFAULTS, check_attackers
from spact_models.errors import UserError
from spact_models.judge import chance
from spact_models.metrics import attribute_chance
from spact_models.obfuscations import OBFUSCATIONS, by_name
from spact_models.settings import Settings

REPRESENTATIONS = (*OBFUSCATIONS, BLACKENED, ANONYMIZED)
QUICK = ("raw", "downsample4x", ANONYMIZED)
Stills = tuple[np.ndarray, np.ndarray, np.ndarray]  # each uint8 (N,H,W,3)


@dataclass(frozen=True)
class Suite:
    """What to judge and how hard."""

    protocol: str
    tasks: tuple[str, ...]  # private columns for top-1 ("identity", "source", …)
    representations: tuple[str, ...] = REPRESENTATIONS
    attackers: tuple[str, ...] = ()  # () = the preset's
    seeds: tuple[int, ...] = (0,)
    attributes: bool = False  # multi-label cMAP and F1
    columns: tuple[str, ...] = ()  # their columns; () = all but identity
    retrieval: bool = True
    retrieval_attackers: tuple[str, ...] = ()  # () = the attackers
    crops: bool = False  # person-only and background-only attackers; needs boxes
    inversion: bool = False
    action: bool = True
    enough: float | None = None  # share of the videos that one attacker names so that the next are not asked; one seed

    def __post_init__(self) -> None:
        check_attackers([*self.attackers])
        for name in self.representations:
            if name not in REPRESENTATIONS:
                known_names = ", ".join(REPRESENTATIONS)
                raise UserError(f"representation = {name!r}: no such representation, must be among {known_names}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds = {list(self.seeds)}, must be at least one, each once")
        if self.enough is not None and len(self.seeds) > 1:
            raise ValueError("enough: the seeds of one attacker would not all be asked")


def judge_suite(
    anonymizer: ClipTransform,
    settings: Settings,
    rows: Sequence[Row],
    cache: FrameCache,
    device: torch.device,
    suite: Suite,
    *,
    attribute_rows: Sequence[Row] | None = None,
    progress: bool = True,
    model: Mapping[str, Any] | None = None,
    before: Evaluation | None = None,
    delivered: Mapping[str, Sequence[Row]] | None = None,
    on_done: Callable[[Evaluation], object] = lambda _: None,
    on_restored: Callable[[str, Stills], object] = lambda *_: None,
) -> tuple[Evaluation, Hits]:
    """Judge ``anonymizer`` and the suite's baselines with fresh networks.

    Rows whose split is ``train`` teach the fresh networks, rows whose split is ``test`` test them. What the data
    cannot answer is left out and named in ``not_measured``. Representations that ``before`` holds under the same key
    are taken from it; ``on_done`` is called with all that is done after each one, ``anonymized`` right after ``raw``;
    with ``suite.inversion`` also ``on_restored`` with its name and some frames: raw, as released, as restored.
    ``delivered`` holds further representations, for each the same rows with the paths of files that somebody made of
    them; they are judged as they are, and no inverter is let at them, since nothing says that their frames are in step.

    Returns:
        the evaluation, and the answers video by video of the representations judged in this call.
    """
    started = time.monotonic()
    suite = replace(suite, attackers=suite.attackers or DEFAULTS[settings.preset])
    bench = set_up(suite, settings, rows, attribute_rows, cache, delivered)
    evaluation = _resumed(_opened(suite, settings, bench, rows, attribute_rows, delivered, device, model), before)
    spent = evaluation.seconds
    hits: Hits = {}
    if suite.inversion:
        bench.not_measured += [f"reconstruction of {name}: its frames need not be in step" for name in bench.delivered]
    todo = _planned(anonymizer, suite, bench, evaluation)
    with (
        progress_bar("judge", "step", len(todo) * steps(suite, settings, bench), progress) as bar,
        Attacks(suite, settings, bench, device, bar) as attacks,
    ):
        for name, found in attacks.on(todo):
            hits[name] = hits_of(found, suite.seeds)
            bench.not_measured += not_asked(found, name, suite.attackers)
            done = {**evaluation.representations, name: represented(found, suite.seeds)}
            evaluation = replace(
                evaluation,
                representations={one: done[one] for one in dict.fromkeys([*REPRESENTATIONS, *done]) if one in done},
                chance={**evaluation.chance, **retrieval_chance(found)},
                not_measured=tuple(bench.not_measured),
                seconds=spent + time.monotonic() - started,
                created=now(),
            )
            on_done(evaluation)
            if (key := ("reconstruction", "", suite.seeds[0])) in found:
                on_restored(name, found[key]["pictures"])
    return evaluation, hits


def _resumed(evaluation: Evaluation, before: Evaluation | None) -> Evaluation:
    """With what an earlier judgement of the same key has found."""
    if before is None or before.key != evaluation.key:
        return evaluation
    made, theirs = before.data.get("delivered", {}), evaluation.data.get("delivered", {})
    return replace(
        evaluation,
        # a delivered file that changed since is judged anew
        representations={
            name: row
            for name, row in before.representations.items()
            if name not in theirs or theirs[name] == made.get(name)
        },
        data={**evaluation.data, **({"delivered": {**made, **theirs}} if made or theirs else {})},
        chance={**before.chance, **evaluation.chance},
        rounds=before.rounds,
        seconds=before.seconds,
        created=before.created,
    )


def _planned(anonymizer: ClipTransform, suite: Suite, bench: Bench, evaluation: Evaluation) -> dict[str, ClipTransform]:
    """By name, what makes each representation that is still to judge; other files than the raw ones go as they are."""
    wanted = [*_in_turn(suite.representations), *bench.delivered]
    todo = [name for name in wanted if name not in evaluation.representations]
    todo = [name for name in todo if name != BLACKENED or bench.blackened is not None]
    return {
        name: anonymizer if name == ANONYMIZED else by_name("raw" if bench.other_files(name) else name) for name in todo
    }


def _in_turn(names: Sequence[str]) -> list[str]:
    """Raw and anonymized first: whoever interrupts has the two ends."""
    first = [name for name in ("raw", ANONYMIZED) if name in names]
    return [*first, *(name for name in REPRESENTATIONS if name in names and name not in first)]


def _opened(
    suite: Suite,
    settings: Settings,
    bench: Bench,
    rows: Sequence[Row],
    attribute_rows: Sequence[Row] | None,
    delivered: Mapping[str, Sequence[Row]] | None,
    device: torch.device,
    model: Mapping[str, Any] | None,
) -> Evaluation:
    """The evaluation before anything is judged."""
    levels: dict[str, float | None] = {}
    for task in ([ACTION] if bench.actions else []) + list(bench.tasks):
        assert bench.videos is not None
        levels[task] = known(chance(bench.videos[1], task))
        if task != ACTION and bench.crops:
            levels |= {f"{task} ({crop})": levels[task] for crop in CROPS}
    if bench.attributed is not None and bench.attributed[1].attributes_VA is not None:
        cmap, f1 = attribute_chance(bench.attributed[1].attributes_VA)
        levels |= {"attributes": known(cmap), "attributes_f1": known(f1)}
    data: dict[str, Any] = {
        "train_videos": len(bench.train),
        "test_videos": len(bench.test),
        "actions": bench.actions,
        "attributes": bench.labels,
        "sha256": rows_digest([*rows, *(attribute_rows or ())]),
    }
    if delivered:
        data["delivered"] = {name: digest(theirs) for name, theirs in delivered.items()}
    budget = asdict(settings.judge)
    decisive = {
        **{name: value for name, value in asdict(suite).items() if name != "representations"},
        "budget": budget,
        "networks": [settings.networks.action, settings.precision],
        "clip": asdict(settings.clip),
        "data": data["sha256"],
        "model": (model or {}).get("sha256"),
    }
    return Evaluation(
        protocol=suite.protocol,
        seeds=suite.seeds,
        budget=budget,
        action_network=settings.networks.action,
        data=data,
        chance=levels,
        representations={},
        not_measured=tuple(bench.not_measured),
        model=dict(model or {}),
        versions=versions(),
        machine=machine(device),
        created=now(),
        key=hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest(),
    )


def rows_digest(rows: Sequence[Row]) -> str:
    """A name for exactly these rows, their labels, their sides and what their box files say."""

    def boxes(row: Row) -> str:
        if row.boxes is None or not row.boxes.is_file():
            return str(row.boxes)
        return hashlib.sha256(row.boxes.read_bytes()).hexdigest()

    lines = sorted(
        json.dumps([str(row.path), row.split, row.action, row.source, boxes(row), dict(row.attributes)], sort_keys=True)
        for row in rows
    )
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def versions() -> dict[str, str]:
    """What a judgement was made with."""
    return {"fedspact": __version__, "torch": torch.__version__, "python": platform.python_version()}


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures' seconds were measured on."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 (Linux alone tells the model there)
            cpu = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), cpu)
    except OSError:
        pass
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu}
