"""Tables as plain rows of cells, which the template only lays out, and those of a judgement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulations.report.judged import ANONYMIZED, RAW, Attack, Figure, Judged
from simulations.report.words import interval, measured, name_of, percent

UP, DOWN = "\u00a0↑", "\u00a0↓"  # which way is better; the arrow stays with its word


@dataclass(frozen=True)
class Cell:
    """What one cell says: the text, a smaller note under it, and whether it stands out."""

    text: str
    note: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Line:
    """One row: its head cell and the others; ``mark`` puts it apart (``ours``, ``worst``, ``chance``).

    A line without cells is the head of the group of lines below it.
    """

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
    """A share (``≥``: at least) with its 95 % interval, or its spread over seeds where there is no interval."""
    if figure is None:
        return Cell("–")
    note = interval(figure) or (f"± {100 * figure.sd:.1f}" if figure.sd is not None else "")
    return Cell(measured(figure), note, strong)


def representation_table(judged: Judged, tasks: Sequence[str] = ()) -> Table:
    """Representations, their action and the strongest attacker of each task; chance last.

    Without ``tasks`` it is all of both, else these tasks and the representations that were asked one of them.
    """
    shown = {
        name: seen
        for name, seen in judged.representations.items()
        if not tasks or any(task in seen.attacks for task in tasks)
    }
    tasks = tuple(tasks) or judged.tasks
    with_f1 = [task for task in tasks if any(task in seen.attacks and seen.attacks[task].f1 for seen in shown.values())]
    lines = []
    for name, seen in shown.items():
        ours = name == ANONYMIZED
        figures = [seen.action, *(seen.leakage(task) for task in tasks)]
        figures += [seen.attacks[task].macro_f1 if task in seen.attacks else None for task in with_f1]
        cells = [figure_cell(figure, ours) for figure in figures]
        lines.append(Line(Cell(name_of(name), strong=ours), cells, "ours" if ours else ""))
    asked = ("action", *tasks, *(f"{task}_f1" for task in with_f1))
    lines.append(Line(Cell("chance"), [Cell(percent(judged.chance.get(task))) for task in asked], "chance"))
    heads = ["representation", f"action{UP}", *(f"{_with_metric(judged, task)}{DOWN}" for task in tasks)]
    heads += [f"{name_of(task)}, macro-F1{DOWN}" for task in with_f1]
    return Table("Every representation, judged with the same budget; the strongest attacker counts", heads, lines)


def _with_metric(judged: Judged, task: str) -> str:
    """A task's name, with its metric where that is not top-1."""
    asked = [seen.attacks[task].metric for seen in judged.representations.values() if task in seen.attacks]
    return f"{name_of(task)}, cMAP" if "cmap" in asked else name_of(task)


def attack_table(judged: Judged) -> Table | None:
    """Every attacker on the anonymized videos, with the same attacker on raw ones and chance beside it."""
    lines = []
    seen, raw = judged.representations[ANONYMIZED], judged.representations.get(RAW)
    for task in judged.tasks:
        if task in seen.attacks:
            on_raw = raw.attacks.get(task) if raw else None
            metric = "class-mean average precision (cMAP)" if seen.attacks[task].metric == "cmap" else "top-1"
            lines.append(Line(Cell(name_of(task), metric), []))
            chance = Cell(percent(judged.chance.get(task)), _macro(judged.chance.get(f"{task}_f1")))
            lines += _attackers(seen.attacks[task], on_raw, chance)
    heads = ["fresh attacker", f"anonymized{DOWN}", "raw", "chance"]
    return Table("Every fresh attacker; the strongest of each question in bold", heads, lines) if lines else None


def _macro(share: float | None) -> str:
    return "" if share is None else f"macro-F1 {percent(share)}"


def _by(attacker: str, attack: Attack | None, strong: bool = False) -> Cell:
    """One attacker's figure, its macro-F1 below it where there is one."""
    found = figure_cell(attack.attackers.get(attacker) if attack else None, strong)
    macro = _macro(attack.f1[attacker].mean) if attack and attacker in attack.f1 else ""
    return Cell(found.text, "; ".join(filter(None, (found.note, macro))), strong)


def _attackers(attack: Attack, on_raw: Attack | None, chance: Cell) -> list[Line]:
    lines = []
    for attacker, figure in attack.attackers.items():
        strongest = attacker == attack.strongest
        notes = ["strongest"] if strongest and len(attack.attackers) > 1 else []
        if figure.at_least:
            notes.append(f"right in {percent(figure.learned, 0)} of its training clips")
        cells = [_by(attacker, attack, strongest), _by(attacker, on_raw), chance]
        lines.append(Line(Cell(name_of(attacker), "; ".join(notes), strongest), cells, "ours" if strongest else ""))
    return lines


def reconstruction_table(judged: Judged) -> Table | None:
    """The inverter's figures where it was asked for."""
    lines = []
    for name, seen in judged.representations.items():
        told = seen.reconstruction
        if told:
            psnr, ssim = _decibels(told.get("psnr_db")), _similarity(told.get("ssim"))
            floors = _decibels(told.get("mean_picture_psnr_db")), _similarity(told.get("mean_picture_ssim"))
            notes = ["" if floor == "–" else f"mean picture {floor}" for floor in floors]
            cells = [Cell(psnr, notes[0]), Cell(ssim, notes[1]), figure_cell(told.get("identity"))]
            ours = name == ANONYMIZED
            lines.append(Line(Cell(name_of(name), strong=ours), cells, "ours" if ours else ""))
    heads = ["representation", f"PSNR{DOWN}", f"SSIM{DOWN}", f"identity on the result{DOWN}"]
    caption = "A fresh U-Net that tries to give the raw video back; below: the mean training picture, without looking"
    return Table(caption, heads, lines) if lines else None


def _decibels(figure: Figure | None) -> str:
    return f"{figure.mean:.1f}\u202fdB" if figure else "–"


def _similarity(figure: Figure | None) -> str:
    return f"{figure.mean:.2f}" if figure else "–"
