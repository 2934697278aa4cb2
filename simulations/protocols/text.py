"""An evaluation as plain text: one line a representation, the strongest attacker's figure, chance below."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.protocols.evaluation import ACTION, Evaluation, Figure
from spact_models.learned import LEARNED

NOTHING, AT_LEAST = "–", "≥"
METRICS = {"attributes": "attributes cMAP", "attributes_f1": "attributes macro-F1"}  # all others are top-1


def table(evaluation: Evaluation, intervals: bool = False) -> str:
    """Action and the strongest attacker of each task; with ``intervals`` the 95 % interval beside each figure.

    Attributes stand in cMAP and in macro-F1, each by the attacker that is strongest in it. ``≥`` marks the figure of a
    network that had not learned its own training clips when its steps ended.
    """
    rows = evaluation.representations
    asked = {name: row.questions for name, row in rows.items()}
    tasks = list(dict.fromkeys(task for questions in asked.values() for task in questions))
    heads = ["", "action ↑", *(f"{_shown(task)} ↓" for task in tasks)]
    lines = [heads]
    for name, row in rows.items():
        figures = [row.action, *(asked[name][task].figure if task in asked[name] else None for task in tasks)]
        lines.append([name, *(_cell(figure, intervals) for figure in figures)])
    levels = [evaluation.chance.get(task) for task in (ACTION, *tasks)]
    lines.append(["chance", *(NOTHING if level is None else f"{level:.3f}" for level in levels)])
    restored = [(row.reconstruction or {}).get("identity") for row in rows.values()]
    attacks = [attack for row in rows.values() for attack in row.attacks.values()]
    shown = [*(row.action for row in rows.values()), *(attack.figure for attack in attacks), *restored]
    parts = [_aligned(lines)]
    if any(figure is not None and figure.at_least for figure in shown):
        ended = f"{AT_LEAST} after its {evaluation.budget['steps']:.0f} steps the network"
        parts.append(f"{ended} did not know {LEARNED:.0%} of its own training clips yet")
    return "\n".join(parts)


def attackers_table(evaluation: Evaluation) -> str:
    """Every attacker's figure, task by task, the strongest of each marked; then a question that had no two videos."""
    blocks = []
    asked = {name: row.questions for name, row in evaluation.representations.items()}
    for task in dict.fromkeys(task for questions in asked.values() for task in questions):
        rows = {name: questions[task] for name, questions in asked.items() if task in questions}
        attackers = list(dict.fromkeys(one for attack in rows.values() for one in attack.attackers))
        lines = [[_shown(task), *attackers]]
        for name, attack in rows.items():
            marked = [
                f"{_cell(attack.attackers[one], False)}{'*' if one == attack.strongest else ' '}"
                if one in attack.attackers
                else NOTHING
                for one in attackers
            ]
            lines.append([name, *marked])
        blocks.append(_aligned(lines))
    blocks += [f"not measured: {note}" for note in evaluation.lacking if note not in evaluation.not_measured]
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
    share = f"{AT_LEAST if figure.at_least else ''}{figure.mean:.3f}"
    return f"{share} [{figure.low:.3f}, {figure.high:.3f}]" if interval else share


def _shown(name: str) -> str:
    return METRICS.get(name, name.replace("_", " "))


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    first, *rest = (max(map(len, column)) for column in zip(*lines, strict=True))
    out = ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], rest)]) for row in lines]
    return "\n".join([out[0], "─" * len(out[0]), *out[1:]])
