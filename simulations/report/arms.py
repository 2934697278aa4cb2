"""The comparison's charts and tables: arms against each other, and the paired tests with their margins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulations.compare.statistics import FAILS, UNDECIDED
from simulations.report.arm_words import arm_name, figure_of, task_of, verdict
from simulations.report.collect import ComparisonStory
from simulations.report.drawing import ACCENT, INK, MUTED, SECOND, Chart, blank_layout, dotted_line, error_bars
from simulations.report.judged import Figure
from simulations.report.tables import DOWN, UP, Cell, Line, Table, figure_cell
from simulations.report.words import byte_size, duration, measured, name_of, percent, points


def arm_table(comparison: ComparisonStory) -> Table:
    """Arm by arm in each partition: figures with their spread over seeds, the worst site, what it cost."""
    lines = _grouped([(arm.get("partition"), _arm_line(arm)) for arm in comparison.content["summary"]])
    chance = comparison.content.get("chance") or {}
    if chance:
        blank = [Cell("")] * 4
        private = next((value for task, value in chance.items() if task != "action"), None)
        cells = [Cell(percent(chance.get("action"))), Cell(percent(private)), *blank]
        lines.append(Line(Cell("chance"), cells, "chance"))
    heads = ["arm", f"action{UP}", f"{name_of(task_of(comparison))}{DOWN}", "worst site", "bytes", "time", "memory"]
    return Table("Arms at equal total steps; mean and standard deviation over seeds", heads, lines)


def _arm_line(arm: Mapping[str, Any]) -> Line:
    cells = [
        _with_spread(figure_of(arm.get("action"))),
        _with_spread(figure_of(arm.get("leakage"))),
        _worst_cell(arm.get("worst_site")),
        Cell(byte_size(_number(arm, "bytes", "bytes_up"))),
        Cell(duration(_number(arm, "seconds"))),
        Cell(_memory(_number(arm, "peak_rss_mb"))),
    ]
    ours = arm.get("arm") == "federated"
    return Line(Cell(name_of(str(arm.get("arm"))), strong=ours), cells, "ours" if ours else "")


def _grouped(lines: Sequence[tuple[str | None, Line]]) -> list[Line]:
    """Lines below a head for each partition; those of no partition last."""
    out = []
    for partition in sorted(dict.fromkeys(partition for partition, _ in lines), key=lambda one: one is None):
        out.append(Line(Cell(f"split: {partition}" if partition else "pooled, or not trained"), []))
        out += [line for own, line in lines if own == partition]
    return out


def paired_table(comparison: ComparisonStory) -> Table | None:
    """The paired tests: difference, its interval, the margin, the verdict."""
    lines = []
    for test in comparison.content.get("tests") or []:
        told = verdict(test)
        cells = [_difference_cell(test.get("utility")), _difference_cell(test.get("leakage"))]
        cells.append(Cell(told, strong=told != UNDECIDED))
        line = Line(Cell(str(test.get("name", ""))), cells, "worst" if told == FAILS else "")
        lines.append((test.get("partition"), line))
    heads = ["paired test", "action, points", f"{name_of(task_of(comparison))}, points", "verdict"]
    caption = "Paired bootstrap over the same test videos and seeds; 95 % interval"
    return Table(caption, heads, _grouped(lines)) if lines else None


def arm_chart(comparison: ComparisonStory, key: str) -> Chart | None:
    """Every arm's action and leakage as points on one scale, from worst to best arm downwards."""
    arms = [
        (arm_name(arm), arm, action, leakage)
        for arm in comparison.content["summary"]
        if (action := figure_of(arm.get("action"))) and (leakage := figure_of(arm.get("leakage")))
    ]
    if not arms:
        return None
    names, task = [name for name, *_ in arms], name_of(task_of(comparison))
    traces = [
        _dots("action", names, [action for *_, action, _ in arms], ACCENT, "circle"),
        _dots(f"{task}, strongest attacker", names, [leakage for *_, leakage in arms], SECOND, "diamond"),
    ]
    layout = blank_layout(130 + 30 * len(arms), "share of test videos", "")
    layout["xaxis"] |= {"range": [-0.02, 1.04], "tickformat": ".0%"}
    layout["yaxis"] |= {"autorange": "reversed", "type": "category", "title": {"text": ""}}
    chance = comparison.content.get("chance") or {}
    layout["shapes"] = [
        dotted_line(x=value) | {"line": {"color": ACCENT if task == "action" else SECOND, "width": 1, "dash": "dot"}}
        for task, value in chance.items()
        if value is not None
    ]
    told = "; ".join(f"{name}: action {measured(a)}, {task} {measured(b)}" for name, _, a, b in arms)
    note = "Bars: 95 % intervals over the test videos; dotted: chance of each"
    alt = f"Dot chart of {len(arms)} arms. {told}."
    return Chart(key, "Arms side by side", alt, {"data": traces, "layout": layout}, arm_table(comparison), note)


def paired_charts(comparison: ComparisonStory, key: str) -> list[Chart]:
    """Differences with their intervals against zero and the margin: action, then leakage."""
    table, task = paired_table(comparison), name_of(task_of(comparison))
    tests = comparison.content.get("tests") or []
    made = []
    for part, word, better in (("utility", "action", "right"), ("leakage", task, "left")):
        asked = [test for test in tests if test.get(part)]
        if asked and table is not None:
            made.append(_paired_chart(asked, part, word, better, f"{key}-{part}", table))
    return made


def _paired_chart(
    tests: Sequence[Mapping[str, Any]], part: str, word: str, better: str, key: str, table: Table
) -> Chart:
    labels = [_paired_label(test) for test in tests]
    figures = [_difference(test[part]) for test in tests]
    told = [
        f"{label}: {points(figure.mean)} points ({points(figure.low)} to {points(figure.high)})".replace("<br>", " ")
        for label, figure in zip(labels, figures, strict=True)
    ]
    trace = _dots("difference", labels, [_scaled(figure) for figure in figures], INK, "circle")
    trace |= {"hovertext": told, "hoverinfo": "text", "hovertemplate": None, "showlegend": False}
    margins = _margins(labels, [test[part].get("margin") for test in tests], -100 if part == "utility" else 100)
    layout = blank_layout(130 + 44 * len(labels), "difference (percentage points)", "")
    layout["yaxis"] |= {"autorange": "reversed", "type": "category", "title": {"text": ""}}
    layout["shapes"] = [dotted_line(x=0) | {"line": {"color": MUTED, "width": 1.5}}]
    alt = f"Differences in {word} with 95 % intervals. {'; '.join(told)}."
    note = f"Further {better} is better" + (". Red: the margin that may not be crossed" if margins else "")
    return Chart(key, f"Paired differences in {word}", alt, {"data": [trace, *margins], "layout": layout}, table, note)


def _margins(labels: Sequence[str], margins: Sequence[float | None], scale: float) -> list[dict[str, Any]]:
    """The margin of each test as a tick on the side where crossing it would be worse."""
    known = [(label, scale * margin) for label, margin in zip(labels, margins, strict=True) if margin]
    if not known:
        return []
    marker = {"symbol": "line-ns", "size": 16, "line": {"width": 2.5, "color": "var(--bad)"}}
    x, y = [value for _, value in known], [label for label, _ in known]
    trace = {"type": "scatter", "mode": "markers", "name": "margin", "x": x, "y": y, "marker": marker}
    return [trace | {"hovertemplate": "margin %{x:.1f} points<extra></extra>"}]


def _dots(name: str, labels: Sequence[str], figures: Sequence[Figure], colour: str, symbol: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [figure.mean for figure in figures],
        "y": list(labels),
        "error_x": error_bars(figures, colour),
        "marker": {"symbol": symbol, "size": 10, "color": colour},
        "hovertemplate": "%{y}<br>" + name + " %{x:.1%}<extra></extra>",
    }


def _paired_label(test: Mapping[str, Any]) -> str:
    """In two or three lines, so that a phone has room for the chart beside it."""
    name = str(test.get("name", "")).replace(" than ", "<br>than ").replace(" of ", "<br>of ")
    return f"{name}<br>{test['partition']}" if test.get("partition") else name


def _difference(told: Mapping[str, Any]) -> Figure:
    return Figure(float(told.get("difference") or 0.0), None, told.get("low"), told.get("high"))


def _scaled(figure: Figure) -> Figure:
    low, high = (None if end is None else 100 * end for end in (figure.low, figure.high))
    return Figure(100 * figure.mean, None, low, high)


def _difference_cell(told: Mapping[str, Any] | None) -> Cell:
    if not told:
        return Cell("–")
    note = f"{points(told.get('low'))} to {points(told.get('high'))}; margin {100 * (told.get('margin') or 0):.0f}"
    return Cell(points(told.get("difference")), note)


def _worst_cell(worst: Any) -> Cell:
    """A site's name with its figures, or one figure."""
    if isinstance(worst, Mapping) and "mean" in worst:
        return figure_cell(figure_of(worst))
    if isinstance(worst, Mapping):
        parts = [
            f"{word} {percent(_share(worst[word]))}" for word in ("action", "leakage") if worst.get(word) is not None
        ]
        return Cell(str(worst.get("site", "")) or "–", ", ".join(parts))
    return Cell(percent(worst) if isinstance(worst, int | float) else "–")


def _with_spread(figure: Figure | None) -> Cell:
    if figure is None:
        return Cell("–")
    return Cell(measured(figure), f"± {100 * figure.sd:.1f}" if figure.sd is not None else "one seed")


def _share(told: Any) -> float | None:
    figure = figure_of(told)
    return figure.mean if figure else (float(told) if isinstance(told, int | float) else None)


def _number(arm: Mapping[str, Any], *names: str) -> float | None:
    """The first of these keys that holds a number, or the mean of a figure; bytes may be split into up and down."""
    for name in names:
        told = arm.get(name)
        if isinstance(told, Mapping) and {"up", "down"} <= told.keys():
            return float(told["up"]) + float(told["down"])
        value = _share(told)
        if value is not None:
            return value
    return None


def _memory(megabytes: float | None) -> str:
    return byte_size(megabytes * 2**20 if megabytes else None)
