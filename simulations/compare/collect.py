"""From finished cells to ``comparison.json``: every arm's figures, its worst site, and the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.held import value_of
from client.video.rows import Row
from simulations.compare.bounds import stopped_early_note
from simulations.compare.cell import HITS
from simulations.compare.folder import CELLS, ComparisonFolder
from simulations.compare.plan import BASELINES, CENTRALIZED, FEDERATED, LOCAL, Cell, Plan
from simulations.compare.statistics import LEAKAGE_MARGIN, UTILITY_MARGIN, Hits, compare_hits
from simulations.partition import partition
from simulations.protocols.evaluation import FILE, Figure, now, read_evaluation
from simulations.protocols.suite import versions
from spact_models.learned import least_learned

FORMAT, FORMAT_VERSION = "fedspact-comparison", 1
ACTION = "action"
COSTS = ("steps", "bytes_up", "bytes_down", "seconds", "peak_rss_mb")
ENOUGH_CLIPS, ENOUGH_SEEDS = 2000, 3  # evaluation.md: what a verdict should rest on


@dataclass(frozen=True)
class Arm:
    """One arm of one partition over all seeds: the hits of its fresh f_T, and of every fresh attacker."""

    cells: tuple[Cell, ...]
    records: tuple[Mapping[str, Any], ...]
    action_SV: Hits
    attack_SV: Mapping[str, Hits]  # attacker -> hits

    @cached_property
    def strongest(self) -> str:
        return max(self.attack_SV, key=lambda name: self.attack_SV[name].mean())

    @property
    def leakage_SV(self) -> Hits:
        return self.attack_SV[self.strongest]


class Collected:
    """All finished cells of one comparison, ready to be asked."""

    def __init__(self, folder: ComparisonFolder, plan: Plan, rows: Sequence[Row]) -> None:
        self.folder, self.plan = folder, plan
        self.rows = list(rows)
        train = [row for row in rows if row.split == "train" and not row.is_image]
        test = [row for row in rows if row.split == "test" and not row.is_image]
        self.test_videos = len(test)
        self.asked = {}  # task -> the test rows whose hits the judge keeps, in its order
        for task in (ACTION, plan.task):
            seen = {value_of(row, task) for row in train} - {None, ""}
            self.asked[task] = [row for row in test if value_of(row, task) in seen]

    def arm(self, cells: Sequence[Cell]) -> Arm:
        """The cells of one arm, one a seed."""
        held = [self._hits(cell) for cell in cells]
        stacked = {key: np.stack([hits[key] for hits in held]) for key in held[0]}
        prefix = f"{self.plan.task}/"
        return Arm(
            cells=tuple(cells),
            records=tuple(self._record(cell) for cell in cells),
            action_SV=stacked["action/action"],
            attack_SV={key.removeprefix(prefix): hits for key, hits in stacked.items() if key.startswith(prefix)},
        )

    def learned(self, cell: Cell) -> dict[str, float | None]:
        """By network (``action`` and the attackers): the share of its own training clips that it knew in the end."""
        (row,) = read_evaluation(self.folder.cell_path(cell) / FILE).representations.values()
        figures = {**row.attacks[self.plan.task].attackers, ACTION: row.action}
        return {name: figure.learned for name, figure in figures.items() if figure is not None}

    def _record(self, cell: Cell) -> dict[str, Any]:
        record = self.folder.finished(cell)
        if record is None:
            raise RuntimeError(f"{self.folder.cell_path(cell)}: not finished")
        return record

    def _hits(self, cell: Cell) -> dict[str, NDArray[np.float64]]:
        with np.load(self.folder.cell_path(cell) / HITS) as file:
            hits = {key: file[key][0].astype(np.float64) for key in file.files}
        for key, hit_V in hits.items():
            if len(hit_V) != len(self.asked[key.partition("/")[0]]):
                raise RuntimeError(f"{cell.name}: {key} answers for {len(hit_V)} videos, asked were others")
        return hits

    def own_videos(self, task: str, cell: Cell) -> list[NDArray[np.bool_]]:
        """For each site of the cell's partition, which of the asked test videos are its own: (V,) bool."""
        config = self.plan.settings_of(cell).simulation
        shares = [{row.path for row in share} for share in partition(self.rows, config, cell.seed)]
        return [np.array([row.path in share for row in self.asked[task]], dtype=bool) for share in shares]


def comparison(folder: ComparisonFolder, plan: Plan, rows: Sequence[Row]) -> dict[str, Any]:
    """The whole of ``comparison.json``."""
    held = Collected(folder, plan, rows)
    cells = plan.cells()
    chance = held.arm([cells[0]]).records[0]["chance"]
    settings = {**plan.settings, "simulation.sites": plan.sites}
    lines = [_arm_line(held, cell) for cell in cells]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": now(),
        "settings": settings,
        "manifest": plan.manifest,
        "task": plan.task,
        "attackers": list(plan.attackers) or sorted({key for arm in lines for key in arm["attackers"]}),
        "seeds": list(plan.seeds),
        "sites": plan.sites,
        "partitions": list(plan.partitions),
        "arms": lines,
        "summary": [_summary(held, *name) for name in _names(plan)],
        "tests": tests(held),
        "chance": {task: chance[task] for task in (ACTION, plan.task)},
        "test_videos": held.test_videos,
        "test_clips": held.test_videos * int(plan.settings["judge.test_clips"]),
        "not_measured": [*_cautions(held), *stopped_early_note(lines)],
        "versions": {**versions(), "fedspact": plan.version},
    }


def _names(plan: Plan) -> list[tuple[str, str | None]]:
    """(arm, partition) in the order of the table."""
    out: list[tuple[str, str | None]] = [(CENTRALIZED, None)] if CENTRALIZED in plan.arms else []
    for arm in (FEDERATED, LOCAL):
        out += [(arm, name) for name in plan.partitions] if arm in plan.arms else []
    return out + ([(name, None) for name in plan.baselines] if BASELINES in plan.arms else [])


def federated(held: Collected, name: str) -> Arm:
    """The federated arm of one partition."""
    return held.arm([Cell(FEDERATED, seed, name) for seed in held.plan.seeds])


def alone(held: Collected, name: str) -> list[Arm]:
    """The local-only arm of one partition, site by site."""
    sites = range(1, held.plan.sites + 1)
    return [held.arm([Cell(LOCAL, seed, name, site) for seed in held.plan.seeds]) for site in sites]


def worst_own_site(held: Collected, arm: Arm) -> dict[str, Any] | None:
    """Of global anonymizers: the site on whose own test videos action − leakage is least; nothing is trained anew.

    Sites without test videos of their own cannot be asked; None where no site has any.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for place, cell in enumerate(arm.cells):
        own = zip(held.own_videos(ACTION, cell), held.own_videos(held.plan.task, cell), strict=True)
        for site, (action_V, attack_V) in enumerate(own, start=1):
            if action_V.any() and attack_V.any():
                pair = (arm.action_SV[place, action_V].mean(), arm.leakage_SV[place, attack_V].mean())
                found.setdefault(site, []).append((float(pair[0]), float(pair[1])))
    return _worst({site: np.mean(pairs, axis=0) for site, pairs in found.items()})


def worst_alone(sites: Sequence[Arm]) -> dict[str, Any]:
    """Of local-only anonymizers, all asked about all test videos: the site with the least action − leakage."""
    pairs = {site: np.array([arm.action_SV.mean(), arm.leakage_SV.mean()]) for site, arm in enumerate(sites, start=1)}
    worst = _worst(pairs)
    assert worst is not None
    return worst


def _worst(pairs: Mapping[int, np.ndarray]) -> dict[str, Any] | None:
    if not pairs:
        return None
    site = min(pairs, key=lambda number: pairs[number][0] - pairs[number][1])
    action, leakage = (round(float(value), 4) for value in pairs[site])
    return {"site": f"site-{site}", "action": action, "leakage": leakage}


def tests(held: Collected) -> list[dict[str, Any]]:
    """Every verdict that the arms allow, partition by partition."""
    plan, out = held.plan, []
    for name in plan.partitions if FEDERATED in plan.arms else ():
        ours = federated(held, name)
        if CENTRALIZED in plan.arms:
            theirs = held.arm([Cell(CENTRALIZED, seed) for seed in plan.seeds])
            margins = (UTILITY_MARGIN, LEAKAGE_MARGIN)
            pair = (theirs.action_SV, theirs.leakage_SV)
            knew = _least_learned(held, [ours, theirs])
            out.append(_verdicts("federated not worse than centralized", name, ours, pair, margins, knew))
        if LOCAL in plan.arms:
            sites = alone(held, name)
            mean = (mean_hits([s.action_SV for s in sites]), mean_hits([s.leakage_SV for s in sites]))
            knew = _least_learned(held, [ours, *sites])
            out.append(_verdicts("federated ahead of local-only", name, ours, mean, (0.0, 0.0), knew))
            worst = sites[int(worst_alone(sites)["site"].removeprefix("site-")) - 1]
            pair = (worst.action_SV, worst.leakage_SV)
            title, knew = "federated ahead of the worst local-only site", _least_learned(held, [ours, worst])
            out.append(_verdicts(title, name, ours, pair, (0.0, 0.0), knew))
    return out


def mean_hits(arms: Sequence[Hits]) -> Hits:
    """(S, V): each video's share of sites that got it right."""
    mean_SV: Hits = np.mean(np.stack(arms), axis=0)
    return mean_SV


Learned = tuple[float | None, float | None]  # what f_T and the attackers knew of their own training clips


def _least_learned(held: Collected, arms: Sequence[Arm]) -> Learned:
    """Of all cells of these arms, what the least finished f_T and the least finished attacker knew (None: not told).

    Each cell's anonymizer has fresh networks of its own: one that stopped early makes a bound of whatever rests on it.
    """
    action, attack = [], []
    for arm in arms:
        for place, cell in enumerate(arm.cells):
            learned = held.learned(cell)
            action.append(learned.get(ACTION))
            found = float(arm.leakage_SV[place].mean())
            attack.append(least_learned(found, map(learned.get, arm.attack_SV)))
    least = [min((share for share in one if share is not None), default=None) for one in (action, attack)]
    return least[0], least[1]


def _verdicts(
    title: str, name: str, ours: Arm, theirs: tuple[Hits, Hits], margins: tuple[float, float], learned: Learned
) -> dict[str, Any]:
    utility = replace(compare_hits(ours.action_SV, theirs[0], margins[0], more_is_better=True), learned=learned[0])
    leakage = replace(compare_hits(ours.leakage_SV, theirs[1], margins[1], more_is_better=False), learned=learned[1])
    return {"name": title, "partition": name, "utility": utility.to_json(), "leakage": leakage.to_json()}


def _figure(hits_SV: Hits, learned: float | None = None) -> dict[str, Any]:
    return asdict(Figure.of_hits(hits_SV, [learned]))


def _arm_line(held: Collected, cell: Cell) -> dict[str, Any]:
    one = held.arm([cell])
    record = one.records[0]
    training, learned = record["training"] or {}, held.learned(cell)
    found = float(one.leakage_SV.mean())
    return {
        "arm": cell.arm,
        "partition": cell.partition,
        "seed": cell.seed,
        "site": None if cell.site is None else f"site-{cell.site}",
        "folder": f"{CELLS}/{cell.name}",
        "action": _figure(one.action_SV, learned.get(ACTION)),
        "leakage": _figure(one.leakage_SV, least_learned(found, map(learned.get, one.attack_SV))),
        "strongest": one.strongest,
        "attackers": {name: _figure(hits_SV, learned.get(name)) for name, hits_SV in one.attack_SV.items()},
        "worst_site": worst_own_site(held, one) if cell.arm == FEDERATED else None,
        **{name: training.get(name) for name in COSTS},
        "trained_in": record.get("trained_in"),
        "judge_seconds": record["judge_seconds"],
        "judge_peak_rss_mb": record["judge_peak_rss_mb"],
        "device": record["device"],
    }


def _summary(held: Collected, arm: str, name: str | None) -> dict[str, Any]:
    """One row of the table: all seeds of an arm; of local-only runs, the mean over sites."""
    worst: dict[str, Any] | None
    if arm == LOCAL:
        sites = alone(held, name or "")
        action_SV, leakage_SV = (mean_hits([getattr(s, part) for s in sites]) for part in ("action_SV", "leakage_SV"))
        strongest, worst = sorted({site.strongest for site in sites}), worst_alone(sites)
    else:
        sites = [held.arm([Cell(arm, seed, name) for seed in held.plan.seeds])]
        action_SV, leakage_SV, strongest = sites[0].action_SV, sites[0].leakage_SV, [sites[0].strongest]
        worst = worst_own_site(held, sites[0]) if arm == FEDERATED else None
    knew = _least_learned(held, sites)
    return {
        "arm": arm,
        "partition": name,
        "action": _figure(action_SV, knew[0]),
        "leakage": _figure(leakage_SV, knew[1]),
        "strongest": ", ".join(strongest),
        "worst_site": worst,
        **_costs(sites, len(held.plan.seeds)),
    }


def _costs(sites: Sequence[Arm], seeds: int) -> dict[str, Any]:
    """Mean over seeds of what all sites together took; the peak memory is the largest process's."""
    trained = [record["training"] for site in sites for record in site.records if record["training"] is not None]
    if not trained:
        return dict.fromkeys((*COSTS, "bytes"))
    totals = {name: round(sum(one[name] for one in trained) / seeds, 2) for name in COSTS}
    peak = max(one["peak_rss_mb"] for one in trained)
    return {**totals, "bytes": totals["bytes_up"] + totals["bytes_down"], "peak_rss_mb": peak}


def _cautions(held: Collected) -> list[str]:
    """What a reader must know before believing a verdict."""
    plan, out = held.plan, []
    clips = held.test_videos * int(plan.settings["judge.test_clips"])
    if clips < ENOUGH_CLIPS:
        out.append(f"a sure verdict: {clips:,} test clips (videos × clips), {ENOUGH_CLIPS:,} are wanted")
    if len(plan.seeds) < ENOUGH_SEEDS:
        out.append(f"the spread over seeds: {len(plan.seeds)} seed(s), {ENOUGH_SEEDS} are wanted")
    for cell in plan.cells():
        if cell.arm == FEDERATED:
            short = [f"site-{n}" for n, own_V in enumerate(held.own_videos(ACTION, cell), 1) if not own_V.any()]
            if short:
                out.append(f"{', '.join(short)} of {cell.partition}, seed {cell.seed}: no test videos of their own")
    out.append("a federation's wall time: its sites take turns in one process here, and work at once in earnest")
    return out
