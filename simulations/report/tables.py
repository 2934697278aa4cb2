"""The tables of the page as plain rows of cells; the template only lays them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulations.report.collect import RunStory
from simulations.report.judged import ANONYMIZED, RAW, Figure, Judged
from simulations.report.words import byte_size, duration, interval, moment, name_of, percent
from spact_models.errors import UserError
from spact_models.run_config import load_settings


@dataclass(frozen=True)
class Cell:
    """What one cell says: the text, a smaller note under it, and whether it stands out."""

    text: str
    note: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Line:
    """One row: its head cell and the others; ``mark`` puts it apart (``ours``, ``worst``, ``chance``)."""

    head: Cell
    cells: Sequence[Cell]
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a caption and one line of column heads, the first of which stands over the row heads."""

    caption: str
    heads: Sequence[str]
    lines: Sequence[Line]
    numeric: bool = True


def figure_cell(figure: Figure | None, strong: bool = False) -> Cell:
    """A share with its 95 % interval, or its spread over seeds where there is no interval."""
    if figure is None:
        return Cell("–")
    note = interval(figure) or (f"± {100 * figure.sd:.1f}" if figure.sd is not None else "")
    return Cell(percent(figure.mean), note, strong)


def representation_table(judged: Judged) -> Table:
    """Every representation: action and, for each task, the strongest attacker; chance last."""
    tasks = judged.tasks
    lines = []
    for name, seen in judged.representations.items():
        ours = name == ANONYMIZED
        cells = [figure_cell(seen.action, ours), *(figure_cell(seen.leakage(task), ours) for task in tasks)]
        lines.append(Line(Cell(name_of(name), strong=ours), cells, "ours" if ours else ""))
    chance = [Cell(percent(judged.chance.get(task))) for task in ("action", *tasks)]
    lines.append(Line(Cell("chance"), chance, "chance"))
    heads = ["representation", "action ↑", *(f"{name_of(task)} ↓" for task in tasks)]
    return Table("Every representation, judged with the same budget; the strongest attacker counts", heads, lines)


def attack_table(judged: Judged) -> Table | None:
    """Every attacker on the anonymized videos, with the same attacker on raw ones and chance beside it."""
    lines = []
    seen, raw = judged.representations[ANONYMIZED], judged.representations.get(RAW)
    for task in judged.tasks:
        attack = seen.attacks.get(task)
        if attack is None:
            continue
        on_raw = raw.attacks.get(task) if raw else None
        for attacker, figure in attack.attackers.items():
            strongest = attacker == attack.strongest
            beside = figure_cell(on_raw.attackers.get(attacker) if on_raw else None)
            extra = attack.f1.get(attacker)
            measured = figure_cell(figure, strongest)
            if extra is not None:
                measured = Cell(measured.text, f"macro-F1 {percent(extra.mean)}", strongest)
            cells = [Cell(name_of(attacker), "strongest" if strongest and len(attack.attackers) > 1 else "", strongest)]
            cells += [measured, beside, Cell(percent(judged.chance.get(task)))]
            metric = "class-mean AP" if attack.metric == "cmap" else ""
            lines.append(Line(Cell(name_of(task), metric), cells, "ours" if strongest else ""))
    heads = ["question", "fresh attacker", "anonymized", "raw", "chance"]
    return Table("Every fresh attacker; the strongest of each question in bold", heads, lines) if lines else None


def reconstruction_table(judged: Judged) -> Table | None:
    """The inverter's figures where it was asked for."""
    lines = []
    for name, seen in judged.representations.items():
        told = seen.reconstruction
        if told:
            psnr, ssim = told.get("psnr_db"), told.get("ssim")
            cells = [
                Cell(f"{psnr.mean:.1f}\u202fdB" if psnr else "–"),
                Cell(f"{ssim.mean:.2f}" if ssim else "–"),
                figure_cell(told.get("identity")),
            ]
            lines.append(Line(Cell(name_of(name)), cells, "ours" if name == ANONYMIZED else ""))
    heads = ["representation", "PSNR ↓", "SSIM ↓", "identity on the result ↓"]
    return Table("A fresh U-Net that tries to give the raw video back", heads, lines) if lines else None


def site_table(run: RunStory) -> Table | None:
    """One line a site over the whole run, the worst marked; None: nothing came from sites."""
    totals = site_totals(run)
    if not totals:
        return None
    worst = worst_site(totals)
    lines = []
    for name, told in totals.items():
        mark = "worst" if name == worst and len(totals) > 1 else ""
        labelled = told.get("examples.action")
        cells = [
            Cell(f"{told.get('examples.anonymizer', 0):.0f}", "" if labelled else "no labels of its own"),
            Cell(percent(told.get("top1")), f"of {told['tested']:.0f} videos" if "tested" in told else ""),
            Cell(_decimal(told.get("loss.action"))),
            Cell(_decimal(told.get("loss.privacy")), f"chance {_decimal(told.get('chance.privacy'))}"),
            Cell(byte_size(told["bytes_up"])),
            Cell(duration(told["seconds"])),
            Cell(f"{told['rounds']:.0f}", f"{told['dropped']:.0f} missed" if told["dropped"] else ""),
        ]
        lines.append(Line(Cell(name, "worst site" if mark else "", bool(mark)), cells, mark))
    heads = ["site", "videos", "f_T top-1 ↑", "last L_T", "last L_B", "sent up", "training", "rounds"]
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
        ("sent up and down, in total", [Cell(byte_size(_total_bytes(run))) for run in runs]),
        ("peak memory", [Cell(_memory(run)) for run in runs]),
        ("device", [Cell(str(run.summary.get("device", "–"))) for run in runs]),
    ]
    lines = [Line(Cell(name), cells) for name, cells in rows]
    return Table("What it cost", ["", *(run.name for run in runs)], lines)


def facts_table(run: RunStory) -> Table:
    """Seeds, versions, machine, dates: what somebody needs who wants to see the same again."""
    judged, settings = run.judged, run.settings
    told = dict(judged.described) if judged else {}
    size = f"{settings.get('clip.frames')} frames, every {settings.get('clip.stride_frames')}., at "
    size += f"{settings.get('clip.size_px')} px"
    facts = {
        "begun": moment(run.created),
        "kind of run": f"{run.kind}, preset {settings.get('preset')}",
        "seed of the run": settings.get("seed"),
        "clips": size,
        "judged": f"{moment(told.get('created'))}, protocol {told.get('protocol')}" if told.get("protocol") else None,
        "seeds of the judge": ", ".join(map(str, judged.seeds)) if judged else None,
        "fresh action network": told.get("action_network"),
        "the judge's budget": _pairs(told.get("budget")),
        "videos": f"{judged.train_videos} to learn from, {judged.test_videos} held out" if judged else None,
        "versions": _pairs(told.get("versions") or run.summary.get("versions")),
        "machine": _pairs(told.get("machine")) or run.summary.get("device"),
        "time to judge": duration(told["seconds"]) if told.get("seconds") else None,
        "anonymizer (SHA-256)": (told.get("model") or {}).get("sha256"),
    }
    lines = [Line(Cell(name), [Cell(str(value))]) for name, value in facts.items() if value not in (None, "")]
    return Table("To see the same again", ["", "value"], lines, numeric=False)


def settings_table(run: RunStory) -> Table:
    """Every setting; those that differ from their preset's default come first and are marked."""
    try:
        usual: Mapping[str, Any] = load_settings({"preset": run.settings.get("preset", "tiny")}).flat()
    except UserError:  # a preset of another version
        usual = {}
    changed = [key for key in run.settings if key not in ("preset", "run_dir") and run.settings[key] != usual.get(key)]
    lines = []
    for key in [*changed, *(key for key in run.settings if key not in changed)]:
        note = f"preset: {usual[key]}" if key in changed and key in usual else ""
        lines.append(Line(Cell(key, strong=key in changed), [Cell(str(run.settings[key]), note)]))
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


def _pairs(told: Mapping[str, Any] | None) -> str:
    known = {name: value for name, value in (told or {}).items() if value is not None}
    return ", ".join(f"{name_of(name)} {value}" for name, value in known.items())
