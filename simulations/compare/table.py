"""A comparison as plain text: arms × partitions, raw and chance beside them, then the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulations.compare.bounds import MORE_STEPS, warning
from spact_models.learned import stopped_early

MB = 1e6
RIGHT = 1  # from this column on, text stands at the right


def table(result: Mapping[str, Any]) -> str:
    """What the terminal shows of ``comparison.json``; ``≥``: of networks that had not learned their own clips."""
    task = result["task"]
    heads = ["", "partition", "action ↑", "95 %", f"{task} ↓", "95 %", "worst site", "MB", "minutes", "peak MB"]
    rows = [heads, *(_row(line) for line in result["summary"])]
    chance = result["chance"]
    rows.append(["chance", "", _share(chance["action"]), "", _share(chance[task]), *[""] * 5])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    parts = [lines[0], "─" * sum(widths, 2 * (len(widths) - 1)), *lines[1:], "", *_verdicts(result["tests"])]
    told = warning(result["arms"])
    notes = [text for text in result["not_measured"] if not (told and text.startswith(MORE_STEPS))]  # it says so too
    return "\n".join([*parts, *([told] if told else []), *(f"not measured: {text}" for text in notes)])


def _row(line: Mapping[str, Any]) -> list[str]:
    worst = line["worst_site"]
    shown = "" if worst is None else f"{worst['site']} {worst['action']:.3f}/{worst['leakage']:.3f}"
    trained = line["seconds"] is not None
    return [
        line["arm"],
        line["partition"] or ("pooled" if trained else ""),
        _spread(line["action"]),
        _interval(line["action"]),
        _spread(line["leakage"]),
        _interval(line["leakage"]),
        shown,
        f"{line['bytes'] / MB:.1f}" if trained else "",
        f"{line['seconds'] / 60:.1f}" if trained else "",
        f"{line['peak_rss_mb']:.0f}" if trained else "",
    ]


def _verdicts(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for test in tests:
        lines.append(f"{test['name']}, {test['partition']}:")
        for part in ("utility", "leakage"):
            one = test[part]
            margin = f", margin {one['margin']:g}" if one["margin"] else ""
            span = f"{one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]{margin}"
            lines.append(f"  {part:<8} {span}: {one['verdict']}")
    return [*lines, ""] if lines else []


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    placed = [
        text.ljust(width) if place <= RIGHT else text.rjust(width)
        for place, (text, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(placed).rstrip()


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _spread(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "–"
    bound = "≥" if stopped_early(figure.get("learned")) else ""
    return f"{bound}{figure['mean']:.3f}" + (f" ± {figure['sd']:.3f}" if figure["sd"] is not None else "")


def _interval(figure: Mapping[str, Any] | None) -> str:
    return "" if figure is None else f"{figure['low']:.3f}–{figure['high']:.3f}"
