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
    lines = []
    for name, seen in shown.items():
        ours = name == ANONYMIZED
        cells = [figure_cell(seen.action, ours), *(figure_cell(seen.leakage(task), ours) for task in tasks)]
        lines.append(Line(Cell(name_of(name), strong=ours), cells, "ours" if ours else ""))
    chance = [Cell(percent(judged.chance.get(task))) for task in ("action", *tasks)]
    lines.append(Line(Cell("chance"), chance, "chance"))
    heads = ["representation", f"action{UP}", *(f"{name_of(task)}{DOWN}" for task in tasks)]
    return Table("Every representation, judged with the same budget; the strongest attacker counts", heads, lines)


def attack_table(judged: Judged) -> Table | None:
    """Every attacker on the anonymized videos, with the same attacker on raw ones and chance beside it."""
    lines = []
    seen, raw = judged.representations[ANONYMIZED], judged.representations.get(RAW)
    for task in judged.tasks:
        if task in seen.attacks:
            on_raw = raw.attacks.get(task) if raw else None
            metric = "class-mean average precision" if seen.attacks[task].metric == "cmap" else "top-1"
            lines.append(Line(Cell(name_of(task), metric), []))
            lines += _attackers(seen.attacks[task], on_raw, judged.chance.get(task))
    heads = ["fresh attacker", f"anonymized{DOWN}", "raw", "chance"]
    return Table("Every fresh attacker; the strongest of each question in bold", heads, lines) if lines else None


def _attackers(attack: Attack, on_raw: Attack | None, chance: float | None) -> list[Line]:
    lines = []
    for attacker, figure in attack.attackers.items():
        strongest = attacker == attack.strongest
        found = figure_cell(figure, strongest)
        if attacker in attack.f1:
            macro = f"macro-F1 {percent(attack.f1[attacker].mean)}"
            found = Cell(found.text, "; ".join(filter(None, (found.note, macro))), strongest)
        beside = figure_cell(on_raw.attackers.get(attacker) if on_raw else None)
        notes = ["strongest"] if strongest and len(attack.attackers) > 1 else []
        if figure.at_least:
            notes.append(f"right in {percent(figure.learned, 0)} of its training clips")
        cells = [found, beside, Cell(percent(chance))]
        lines.append(Line(Cell(name_of(attacker), "; ".join(notes), strongest), cells, "ours" if strongest else ""))
    return lines


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
            ours = name == ANONYMIZED
            lines.append(Line(Cell(name_of(name), strong=ours), cells, "ours" if ours else ""))
    heads = ["representation", f"PSNR{DOWN}", f"SSIM{DOWN}", f"identity on the result{DOWN}"]
    return Table("A fresh U-Net that tries to give the raw video back", heads, lines) if lines else None
