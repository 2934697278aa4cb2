"""The tables of runs themselves: side by side, their sites, what they cost, and what it takes to see the same again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.provenance import is_path
from simulations.report.collect import RunStory
from simulations.report.judged import ANONYMIZED
from simulations.report.tables import DOWN, UP, Cell, Line, Table, figure_cell
from simulations.report.words import byte_size, duration, moment, name_of, pairs, percent
from spact_models.errors import UserError
from spact_models.run_config import load_settings


def overview_table(runs: Sequence[RunStory]) -> Table:
    """Several runs, a line each, with the figures that one looks for first."""
    tasks = list(dict.fromkeys(run.judged.main_task for run in runs if run.judged and run.judged.main_task))
    lines = []
    for run in runs:
        seen = run.judged.representations[ANONYMIZED] if run.judged else None
        cells = [
            Cell(run.kind, f"{run.sites} sites" if run.sites > 1 else ""),
            Cell(f"{run.rounds_done} of {run.rounds_planned}", "" if run.finished else "unfinished"),
            figure_cell(seen.action if seen else None),
            *(figure_cell(seen.leakage(task) if seen else None) for task in tasks),
            Cell(str(run.settings.get("seed", "–"))),
            Cell(duration(run.summary.get("seconds"))),
        ]
        lines.append(Line(Cell(run.name), cells))
    heads = ["run", "kind", "rounds", f"action{UP}", *(f"{name_of(task)}{DOWN}" for task in tasks), "seed", "time"]
    return Table("The runs side by side; the strongest attacker counts", heads, lines)


def site_table(run: RunStory) -> Table | None:
    """One line a site over the whole run, that where the shared networks do least marked; None: nothing from sites."""
    totals = site_totals(run)
    if not totals:
        return None
    worst = worst_site(totals)
    marked = "lowest top-1" if any("top1" in told for told in totals.values()) else "highest L_T"
    lines = []
    for name, told in totals.items():
        mark = "worst" if name == worst and len(totals) > 1 else ""
        labelled = told.get("examples.action")
        cells = [
            Cell(f"{told.get('examples.anonymizer', 0):.0f}", "" if labelled else "no labels of its own"),
            Cell(percent(told.get("top1")), f"of {told['tested']:.0f} held out" if "tested" in told else ""),
            Cell(_decimal(told.get("loss.action"))),
            Cell(_decimal(told.get("loss.privacy")), f"chance {_decimal(told.get('chance.privacy'))}"),
            Cell(byte_size(told["bytes_up"])),
            Cell(duration(told["seconds"])),
            Cell(f"{told['rounds']:.0f}", f"{told['dropped']:.0f} missed" if told["dropped"] else ""),
        ]
        lines.append(Line(Cell(name, marked if mark else ""), cells, mark))
    heads = ["site", "videos", f"f_T top-1{UP}", "last L_T", "last L_B", "sent up", "training", "rounds"]
    return Table("The sites; the figures are what each reported itself", heads, lines)


def site_totals(run: RunStory) -> dict[str, dict[str, float]]:
    """By site: its last losses and counts, its last evaluation, and its sums over the run."""
    totals: dict[str, dict[str, float]] = {}
    for line in run.history:
        for site in line["sites"]:
            told = totals.setdefault(site["name"], {"bytes_up": 0, "seconds": 0, "rounds": 0, "dropped": 0})
            if line["kind"] == "train":
                seconds = told["seconds"] + site["metrics"].get("seconds", 0)
                told.update(site["metrics"])
                told.update(seconds=seconds, rounds=told["rounds"] + 1, bytes_up=told["bytes_up"] + site["bytes_up"])
                if line["phase"] == "warmup" or "labelled" not in told:
                    told["labelled"] = site["metrics"].get("examples.action", 0)
            elif "top1" in site["metrics"]:
                told.update(top1=site["metrics"]["top1"], tested=site["metrics"].get("examples", 0))
        for drop in line["dropped"]:
            told = totals.setdefault(drop["name"], {"bytes_up": 0, "seconds": 0, "rounds": 0, "dropped": 0})
            told["dropped"] += line["kind"] == "train"
    for told in totals.values():
        told["examples.action"] = told.get("labelled", 0)  # in the game a teacher labels the rest
    return dict(sorted(totals.items()))


def worst_site(totals: Mapping[str, Mapping[str, float]]) -> str | None:
    """The site where the shared networks do worst: by top-1 where sites evaluated, else by the action's loss."""
    tested = {name: told["top1"] for name, told in totals.items() if "top1" in told}
    if tested:
        return min(tested, key=lambda name: tested[name])
    lost = {name: told["loss.action"] for name, told in totals.items() if "loss.action" in told}
    return max(lost, key=lambda name: lost[name]) if lost else None


def cost_table(runs: Sequence[RunStory]) -> Table:
    """Bytes, time and memory, one column a run."""
    rows: list[tuple[str, list[Cell]]] = [
        ("time, all in all", [Cell(duration(run.summary.get("seconds"))) for run in runs]),
        ("time in training rounds", [Cell(duration(sum(map(_seconds, run.rounds)))) for run in runs]),
        ("training rounds", [Cell(f"{run.rounds_done} of {run.rounds_planned}") for run in runs]),
        ("sent up, a round", [Cell(_per_round(run, "bytes_up")) for run in runs]),
        ("sent down, a round", [Cell(_per_round(run, "bytes_down")) for run in runs]),
        ("sent up and down in total, with the evaluations", [Cell(byte_size(_total_bytes(run))) for run in runs]),
        ("peak memory", [Cell(_memory(run)) for run in runs]),
        ("device", [Cell(str(run.summary.get("device", "–"))) for run in runs]),
    ]
    lines = [Line(Cell(name), cells) for name, cells in rows]
    return Table("What it cost", ["", *(run.name for run in runs)], lines)


def facts_table(run: RunStory) -> Table:
    """Seeds, versions, machine, dates: what somebody needs who wants to see the same again."""
    judged, settings = run.judged, run.settings
    told = dict(judged.described) if judged else {}
    size = f"{settings.get('clip.frames')} frames, {settings.get('clip.stride_frames')} apart, at "
    size += f"{settings.get('clip.size_px')} px"
    facts = {
        "begun": moment(run.created),
        "kind of run": f"{run.kind}, preset {settings.get('preset')}",
        "seed of the run": settings.get("seed"),
        "clips": size,
        "judged": f"{moment(told.get('created'))}, protocol {told.get('protocol')}" if told.get("protocol") else None,
        "seeds of the judge": ", ".join(map(str, judged.seeds)) if judged else None,
        "fresh action network": told.get("action_network"),
        "the judge's budget": pairs(told.get("budget")),
        "videos": f"{judged.train_videos} to learn from, {judged.test_videos} held out" if judged else None,
        "versions": pairs(told.get("versions") or run.summary.get("versions")),
        "machine": pairs(told.get("machine")) or run.summary.get("device"),
        "time to judge": duration(told["seconds"]) if told.get("seconds") else None,
        "anonymizer (SHA-256)": (told.get("model") or {}).get("sha256"),
    }
    lines = [Line(Cell(name), [Cell(str(value))]) for name, value in facts.items() if value not in (None, "")]
    return Table("To see the same again", ["", "value"], lines, numeric=False)


def settings_table(settings: Mapping[str, Any]) -> Table:
    """Every setting; those that differ from their preset's default come first and are marked.

    Of paths the last name is told, so that a page that is passed on does not tell whose folders they are.
    """
    try:
        usual: Mapping[str, Any] = load_settings({"preset": settings.get("preset", "tiny")}).flat()
    except UserError:  # a preset of another version
        usual = {}
    changed = [key for key in settings if key not in ("preset", "run_dir") and settings[key] != usual.get(key)]
    lines = []
    for key in [*changed, *(key for key in settings if key not in changed)]:
        note = f"preset: {usual[key]}" if key in changed and key in usual else ""
        value = Path(str(settings[key])).name if is_path(key) else str(settings[key])
        lines.append(Line(Cell(key, strong=key in changed), [Cell(value, note)]))
    caption = "Settings; those that differ from the preset's come first" if changed else "Settings, all the preset's"
    return Table(caption, ["setting", "value"], lines, numeric=False)


def _per_round(run: RunStory, way: str) -> str:
    counted = [line[way] for line in run.rounds]
    return byte_size(sum(counted) / len(counted)) if counted else "–"


def _total_bytes(run: RunStory) -> float:
    return float(sum(line["bytes_up"] + line["bytes_down"] for line in run.history))


def _seconds(line: Mapping[str, Any]) -> float:
    """Of one round; a centralised one has no server that measures, and says its own."""
    return float(line["seconds"] or line["metrics"].get("seconds", 0.0))


def _memory(run: RunStory) -> str:
    peak = run.summary.get("peak_rss_mb")
    return byte_size(peak * 2**20) if peak else "–"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
