"""The game over the rounds, and what fresh networks found on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from simulations.report.collect import RunStory
from simulations.report.drawing import ACCENT, GREY, INK, SECOND, Chart, blank_layout, dotted_line, error_bars, label_at
from simulations.report.judged import ANONYMIZED, Figure, Judged
from simulations.report.tables import Cell, Line, Table, figure_cell
from simulations.report.words import name_of, percent


def game_charts(run: RunStory, key: str) -> list[Chart]:
    """The losses of the two players' opponents over the rounds; none where no round was recorded."""
    if not run.rounds:
        return []
    made = [
        ("loss.action", "L_T, the action loss", "lower: f_T still sees the action", f"{key}-action"),
        ("loss.privacy", "L_B, the matching loss", "at chance: f_B can no longer match two views", f"{key}-privacy"),
    ]
    return [_loss_chart(run, *told) for told in made if any(told[0] in line["metrics"] for line in run.rounds)]


def _loss_chart(run: RunStory, metric: str, title: str, reading: str, key: str) -> Chart:
    series = {"mean of the sites" if _site_names(run) else "all videos": _series(run.rounds, metric)}
    sites = {name: _site_series(run, name, metric) for name in _site_names(run)}
    chance = _series(run.rounds, "chance.privacy") if metric == "loss.privacy" else {}
    traces = [_thin(name, points, number == 0) for number, (name, points) in enumerate(sites.items())]
    for name, points in series.items():
        traces.append(_curve(name, points, {"color": ACCENT, "width": 3}))
    if chance:
        traces.append(_curve("chance", chance, {"color": INK, "width": 1.5, "dash": "dash"}))
    layout = _over_rounds(run, title.split(",")[0])
    layout["yaxis"] |= {"rangemode": "tozero", "tickformat": ".2~f"}
    columns = {**series, **({"chance": chance} if chance else {}), **sites}
    last = {name: points[max(points)] for name, points in columns.items() if points}
    words = ", ".join(f"{name} {value:.2f}" for name, value in last.items())
    alt = f"Line chart over {run.rounds_done} rounds. {title}, after the last round: {words}."
    return Chart(key, title, alt, {"data": traces, "layout": layout}, _series_table(title, columns, "{:.3f}"), reading)


def judged_rounds_chart(run: RunStory, key: str) -> Chart | None:
    """What fresh networks found of the anonymizer as it was after some rounds, and the sites' own evaluations.

    One attacker and one seed all along. The last round's point is theirs in the whole judgement, and is left out where
    that attacker was not asked there.
    """
    judged = run.judged
    if judged is None or not judged.rounds:
        return None
    task, own = judged.main_task or "", _series(run.evaluations, "top1")
    attacker = _attacker_on_the_way(judged, task)
    seen = dict(judged.rounds)
    if ANONYMIZED in judged.representations:
        seen.setdefault(run.rounds_done, judged.representations[ANONYMIZED])
    action = {number: _first_seed(told.action) for number, told in sorted(seen.items()) if told.action is not None}
    leaked = {
        number: _first_seed(found)
        for number, told in sorted(seen.items())
        if task in told.attacks and (found := told.attacks[task].attackers.get(attacker)) is not None
    }
    traces = [_checkpoints("fresh action network", action, ACCENT, "circle")] if action else []
    if leaked:
        traces.append(_checkpoints(f"{name_of(attacker)}, {name_of(task)}", leaked, SECOND, "diamond"))
    if own:
        style = {"symbol": "x-thin", "size": 9, "line": {"color": INK, "width": 2}}
        traces.append(_curve("federated f_T at the sites", own, {"color": INK}) | {"mode": "markers", "marker": style})
    layout = _over_rounds(run, "top-1")
    layout["yaxis"] |= {"range": [0, 1.04], "tickformat": ".0%"}
    for asked, colour in (("action", ACCENT), (task, SECOND)):
        if asked and asked in judged.chance:
            layout["shapes"].append(
                dotted_line(y=judged.chance[asked]) | {"line": {"color": colour, "width": 1, "dash": "dot"}}
            )
    columns = {"action": action, f"{name_of(task or 'attack')} by {name_of(attacker) or 'nobody'}": leaked}
    last = ", ".join(f"{name} {percent(told[max(told)].mean)}" for name, told in columns.items() if told)
    alt = f"Line chart of fresh networks' figures at {len(seen)} checkpoints; at the last one {last}."
    rows = sorted({*action, *leaked})
    lines = [Line(Cell(str(n)), [figure_cell(action.get(n)), figure_cell(leaked.get(n))]) for n in rows]
    table = Table("Fresh networks at checkpoints", ["round", *columns], lines)
    note = "Fresh networks at checkpoints, one seed and one attacker, not the strongest; dotted: chance of each"
    return Chart(key, "Fresh networks on the way", alt, {"data": traces, "layout": layout}, table, note)


def _attacker_on_the_way(judged: Judged, task: str) -> str:
    """Who was asked at the checkpoints; empty: nobody."""
    asked = (seen.attacks[task].attackers for seen in judged.rounds.values() if task in seen.attacks)
    return next((name for attackers in asked for name in attackers), "")


def _first_seed(figure: Figure) -> Figure:
    """What the first seed found; its interval is told only where it was the only one."""
    return figure if len(figure.per_seed) < 2 else Figure(figure.per_seed[0], learned=figure.learned)


def _checkpoints(name: str, figures: Mapping[int, Figure], colour: str, symbol: str) -> dict[str, Any]:
    trace = _curve(name, {number: figure.mean for number, figure in figures.items()}, {"color": colour, "width": 1.5})
    marker = {"symbol": symbol, "size": 9, "color": colour}
    return trace | {"mode": "lines+markers", "marker": marker, "error_y": error_bars(list(figures.values()), colour)}


def _curve(name: str, points: Mapping[int, float], line: Mapping[str, Any]) -> dict[str, Any]:
    hover = f"{name}<br>round %{{x}}: %{{y:.3f}}<extra></extra>"
    mode = "lines" if len(points) > 1 else "lines+markers"
    x, y = list(points), list(points.values())
    return {"type": "scatter", "mode": mode, "name": name, "x": x, "y": y, "line": dict(line), "hovertemplate": hover}


def _thin(name: str, points: Mapping[int, float], in_legend: bool) -> dict[str, Any]:
    """A site's curve; one of them stands for all in the legend."""
    more = {"name": "each site", "legendgroup": "sites", "showlegend": in_legend}
    return _curve(name, points, {"color": GREY, "width": 1}) | more


def _series(lines: Iterable[Mapping[str, Any]], metric: str) -> dict[int, float]:
    return {int(line["round"]): line["metrics"][metric] for line in lines if metric in line["metrics"]}


def _site_names(run: RunStory) -> list[str]:
    return sorted({site["name"] for line in run.rounds for site in line["sites"]})


def _site_series(run: RunStory, name: str, metric: str) -> dict[int, float]:
    return {
        int(line["round"]): site["metrics"][metric]
        for line in run.rounds
        for site in line["sites"]
        if site["name"] == name and metric in site["metrics"]
    }


def _series_table(caption: str, columns: Mapping[str, Mapping[int, float]], form: str) -> Table:
    rounds = sorted({number for points in columns.values() for number in points})
    lines = [
        Line(Cell(str(n)), [Cell(form.format(points[n]) if n in points else "–") for points in columns.values()])
        for n in rounds
    ]
    return Table(caption, ["round", *columns], lines)


def _over_rounds(run: RunStory, y_title: str) -> dict[str, Any]:
    """A layout with whole rounds on its axis, a dozen of them at most, and the warm-up as a band."""
    layout = blank_layout(300, "round", y_title)
    power = 10 ** max(0, len(str(run.rounds_done)) - 2)
    step = next(one * power for one in (1, 2, 5, 10, 20) if run.rounds_done <= 12 * one * power)
    layout["xaxis"] |= {"tick0": 0, "dtick": step}
    return layout | _warmup(run)


def _warmup(run: RunStory) -> dict[str, Any]:
    """The warm-up rounds as a band."""
    until = int(run.settings.get("rounds.warmup", 0))
    if not until or run.rounds_done < 1:
        return {"shapes": [], "annotations": []}
    style = {"fillcolor": "var(--band)", "line": {"width": 0}, "layer": "below", "opacity": 1}
    band = {"type": "rect", "x0": 0.5, "x1": until + 0.5, "y0": 0, "y1": 1, "yref": "paper", **style}
    label = label_at("warm-up", x=0.5, y=0, yref="paper", xanchor="left", yanchor="bottom")
    return {"shapes": [band], "annotations": [label]}
