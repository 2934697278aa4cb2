"""An evaluation as plain text: one line a representation, the strongest attacker's figure, chance below."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.protocols.evaluation import ACTION, Evaluation, Figure

NOTHING = "–"


def table(evaluation: Evaluation, intervals: bool = False) -> str:
    """Action and the strongest attacker of each task; with ``intervals`` the 95 % interval beside each figure."""
    rows = evaluation.representations
    tasks = list(dict.fromkeys(task for row in rows.values() for task in row.attacks))
    heads = ["", "action ↑", *(f"{_shown(task)} ↓" for task in tasks)]
    lines = [heads]
    for name, row in rows.items():
        figures = [row.action, *(row.attacks[task].figure if task in row.attacks else None for task in tasks)]
        lines.append([name, *(_cell(figure, intervals) for figure in figures)])
    levels = [evaluation.chance.get(task) for task in (ACTION, *tasks)]
    lines.append(["chance", *(NOTHING if level is None else f"{level:.3f}" for level in levels)])
    return _aligned(lines)


def attackers_table(evaluation: Evaluation) -> str:
    """Every attacker's figure, task by task; the strongest of each is marked."""
    blocks = []
    for task in dict.fromkeys(task for row in evaluation.representations.values() for task in row.attacks):
        rows = {name: row.attacks[task] for name, row in evaluation.representations.items() if task in row.attacks}
        attackers = list(dict.fromkeys(one for attack in rows.values() for one in attack.attackers))
        lines = [[_shown(task), *attackers]]
        for name, attack in rows.items():
            marked = [
                f"{attack.attackers[one].mean:.3f}{'*' if one == attack.strongest else ' '}"
                if one in attack.attackers
                else NOTHING
                for one in attackers
            ]
            lines.append([name, *marked])
        blocks.append(_aligned(lines))
    return "\n\n".join(blocks)


def reconstruction_table(evaluation: Evaluation) -> str:
    """How well a fresh inverter gives the raw frames back, and who is seen in them; empty where it was not asked."""
    rows = {name: row.reconstruction for name, row in evaluation.representations.items() if row.reconstruction}
    if not rows:
        return ""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [["reconstruction", *map(_shown, columns)]]
    for name, row in rows.items():
        lines.append([name, *(_cell(row.get(column), False) for column in columns)])
    return _aligned(lines)


def _cell(figure: Figure | None, interval: bool) -> str:
    if figure is None:
        return NOTHING
    return f"{figure.mean:.3f} [{figure.low:.3f}, {figure.high:.3f}]" if interval else f"{figure.mean:.3f}"


def _shown(name: str) -> str:
    return name.replace("_", " ")


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    first, *rest = (max(map(len, column)) for column in zip(*lines, strict=True))
    out = ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], rest)]) for row in lines]
    return "\n".join([out[0], "─" * len(out[0]), *out[1:]])
