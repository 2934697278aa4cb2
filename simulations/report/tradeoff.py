"""The privacy-utility chart: what every representation, or arm, keeps of the action against what it gives away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from simulations.report.alike import beside
from simulations.report.arm_words import TRAINED, arm_name, figure_of, task_of
from simulations.report.arms import arm_table
from simulations.report.collect import ComparisonStory, RunStory
from simulations.report.drawing import (
    ACCENT,
    FOURTH,
    GREY,
    INK,
    SECOND,
    THIRD,
    Chart,
    blank_layout,
    dotted_line,
    error_bars,
    label_at,
)
from simulations.report.judged import ANONYMIZED, RAW, Attack, Figure, Judged, Seen
from simulations.report.tables import representation_table
from simulations.report.words import TARGET_ACTION, TARGET_LEAKAGE, measured, name_of, percent

MOTION = ("difference_grey", "difference1bit", "bdq")
RUN_COLOURS = (ACCENT, SECOND, THIRD, FOURTH)
RUN_SYMBOLS = ("star", "hexagram", "star-triangle-up", "star-diamond")


def scatter(runs: Sequence[RunStory], task: str, key: str) -> Chart | None:
    """Action kept against the strongest attacker: every run's own, and what was judged beside one of them."""
    judged = [(run, run.judged) for run in runs if run.judged is not None and _place(run.judged, ANONYMIZED, task)]
    if not judged:
        return None
    first, whose = beside(judged)
    traces = [trace for group in _groups(first) if (trace := _points(first, task, *group)) is not None]
    for number, (run, told) in enumerate(judged):
        label = run.name if len(judged) > 1 else name_of(ANONYMIZED)
        colour, symbol = RUN_COLOURS[number % 4], RUN_SYMBOLS[number % 4]
        style = {"symbol": symbol, "size": 17, "color": colour, "line": {"color": "var(--paper)", "width": 1}}
        trace = _points(told, task, label, [ANONYMIZED], style, {ANONYMIZED: label})
        if trace is not None:
            traces.append(trace)
    layout = _scatter_layout(first, task, traces)
    note = "Bars: 95 % intervals over the held-out videos." if _with_bars(first) else ""
    if len(judged) > 1:
        note = f"{note} {whose}".strip()
    title = f"What is kept against what is given away: {name_of(task)}"
    return Chart(
        key,
        title,
        _scatter_words(first, task),
        {"data": traces, "layout": layout},
        representation_table(first, [task]),
        note,
    )


def arm_scatter(comparison: ComparisonStory, key: str) -> Chart | None:
    """The same of a comparison's arms, with the spread over their seeds; None: no arm answered both questions."""
    task, rows = task_of(comparison), comparison.content["summary"]
    arms: dict[str, list[str]] = {arm: [] for arm in TRAINED}
    seen = {}
    for row in rows:
        action, leakage = figure_of(row.get("action")), figure_of(row.get("leakage"))
        if action is not None and leakage is not None:
            name = arm_name(row) if row["arm"] in TRAINED else str(row["arm"])
            arms.setdefault(str(row["arm"]), []).append(name)
            seen[name] = Seen(_by_seeds(action), {task: Attack("top1", {"strongest": _by_seeds(leakage)})})
    if not seen:
        return None
    chance = {name: value for name, value in (comparison.content.get("chance") or {}).items() if value is not None}
    judged = Judged("comparison.json", seen, chance)
    trained = [name for arm in TRAINED for name in arms[arm]]
    baselines = replace(judged, representations={name: one for name, one in seen.items() if name not in trained})
    traces = [trace for group in _groups(baselines) if (trace := _points(judged, task, *group)) is not None]
    for number, arm in enumerate(TRAINED):
        style = {"symbol": RUN_SYMBOLS[number], "size": 15, "color": RUN_COLOURS[number]}
        style["line"] = {"color": "var(--paper)", "width": 1}
        trace = _points(judged, task, name_of(arm), arms[arm], style, {name: name for name in arms[arm]})
        if trace is not None:
            traces.append(trace)
    placed = [
        f"{name}: action {_mean(one.action)}, {name_of(task)} {_mean(one.leakage(task))}" for name, one in seen.items()
    ]
    spread = any(one.action is not None and one.action.sd is not None for one in seen.values())
    return Chart(
        key,
        f"What is kept against what is given away: {name_of(task)}",
        f"Scatter chart of {len(seen)} arms. {'; '.join(placed)}.",
        {"data": traces, "layout": _scatter_layout(judged, task, traces)},
        arm_table(comparison),
        "Bars: standard deviation over seeds." if spread else "",
    )


def _by_seeds(figure: Figure) -> Figure:
    """With the standard deviation over seeds for bars, in place of the interval over the videos."""
    sd = figure.sd
    return replace(figure, low=None if sd is None else figure.mean - sd, high=None if sd is None else figure.mean + sd)


def _mean(figure: Figure | None) -> str:
    return measured(figure) if figure else "–"


def _groups(judged: Judged) -> list[tuple[str, list[str], dict[str, Any]]]:
    """Legend name, representations and marker of each kind of baseline."""
    rest = [name for name in judged.representations if name not in (ANONYMIZED, RAW)]
    motion = [name for name in rest if name in MOTION]
    line = {"color": "var(--paper)", "width": 1}
    return [
        ("raw video", [RAW], {"symbol": "square", "size": 11, "color": INK, "line": line}),
        (
            "obscured pictures",
            [name for name in rest if name not in motion],
            {"symbol": "circle", "size": 10, "color": GREY, "line": line},
        ),
        ("motion only", motion, {"symbol": "diamond", "size": 11, "color": "var(--motion)", "line": line}),
    ]


def _points(
    judged: Judged,
    task: str,
    legend: str,
    names: Iterable[str],
    marker: Mapping[str, Any],
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any] | None:
    placed = {name: place for name in names if (place := _place(judged, name, task)) is not None}
    if not placed:
        return None
    kept, leaked = [place[0] for place in placed.values()], [place[1] for place in placed.values()]
    texts = [(labels or {}).get(name, name_of(name)) for name in placed]
    hover = [
        f"<b>{text}</b><br>action {_long(action)}<br>{name_of(task)} {_long(leak)}"
        for text, action, leak in zip(texts, kept, leaked, strict=True)
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": legend,
        "meta": "labelled",
        "x": [figure.mean for figure in leaked],
        "y": [figure.mean for figure in kept],
        "error_x": error_bars(leaked, marker["color"]),
        "error_y": error_bars(kept, marker["color"]),
        "text": texts,
        "hovertext": hover,
        "hoverinfo": "text",
        "marker": dict(marker),
        "cliponaxis": False,
    }


def _scatter_layout(judged: Judged, task: str, traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    chances = judged.chance
    raw = judged.representations.get(RAW)
    level, top = chances.get(task), raw.action.mean if raw is not None and raw.action is not None else None
    lows = [value for trace in traces for value in trace["y"]] + ([chances["action"]] if "action" in chances else [])
    layout = blank_layout(440, f"{name_of(task)}: strongest fresh attacker (right is more private)", "action top-1")
    layout["xaxis"] |= {"range": [1.04, -0.04], "tickformat": ".0%"}
    layout["legend"] |= {"y": 1.07}  # above the corner's name
    layout["yaxis"] |= {"range": [max(-0.02, min(lows) - 0.07), 1.04], "tickformat": ".0%"}
    shapes: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    if level is not None:
        shapes.append(dotted_line(x=level))
        notes.append(label_at("chance", x=level, y=0, yref="paper", xanchor="right", yanchor="bottom", xshift=-3))
    if "action" in chances:
        shapes.append(dotted_line(y=chances["action"]))
        notes.append(label_at("chance", x=0, xref="paper", y=chances["action"], xanchor="left", yanchor="bottom"))
    if level is not None and top is not None:
        corner = {"x0": -0.04, "x1": level + TARGET_LEAKAGE, "y0": TARGET_ACTION * top, "y1": 1.04}
        style = {"fillcolor": "var(--ideal)", "line": {"width": 0}, "layer": "below", "opacity": 1}
        shapes.append({"type": "rect", "xref": "x", "yref": "y", **corner, **style})
        notes.append(
            label_at(
                "ideal corner",
                x=1,
                xref="paper",
                y=1,
                yref="paper",
                xanchor="right",
                yanchor="bottom",
                color="var(--good)",
            )
        )
    return {**layout, "shapes": shapes, "annotations": notes}


def _scatter_words(judged: Judged, task: str) -> str:
    """The chart in a sentence or two: where the anonymizer stands and what stands nearest."""
    place = _place(judged, ANONYMIZED, task)
    if place is None:
        return ""
    told = f"Scatter chart of {len(judged.representations)} representations. Anonymized video keeps action top-1 "
    told += f"{measured(place[0])} while the strongest attacker reaches {measured(place[1])} in {name_of(task)}"
    raw = _place(judged, RAW, task)
    if raw is not None:
        told += f"; raw video {measured(raw[0])} and {measured(raw[1])}"
    return f"{told}; chance {percent(judged.chance.get('action'))} and {percent(judged.chance.get(task))}."


def _place(judged: Judged, name: str, task: str) -> tuple[Figure, Figure] | None:
    seen = judged.representations.get(name)
    leakage = seen.leakage(task) if seen else None
    return (seen.action, leakage) if seen and seen.action is not None and leakage is not None else None


def _with_bars(judged: Judged) -> bool:
    return any(seen.action is not None and seen.action.low is not None for seen in judged.representations.values())


def _long(figure: Figure) -> str:
    known = figure.low is not None and figure.high is not None
    return measured(figure) + (f" ({percent(figure.low)} to {percent(figure.high)})" if known else "")
