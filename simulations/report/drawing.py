"""What all charts share: their parts as Plotly understands them, in plain dictionaries.

Colours are written as ``var(--name)``: the page looks them up in its style sheet when it draws, so that one figure
serves light, dark and print. A trace with ``meta = "labelled"`` gets its texts placed by the page, clear of each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulations.report.judged import Figure
from simulations.report.tables import Table

INK, MUTED, GREY = "var(--ink)", "var(--muted)", "var(--grey)"
ACCENT, SECOND, THIRD, FOURTH = "var(--accent)", "var(--second)", "var(--third)", "var(--fourth)"


@dataclass(frozen=True)
class Chart:
    """A figure, what it shows in words for those who do not see it, and its numbers as a table."""

    key: str  # unique on the page
    title: str
    alt: str
    figure: Mapping[str, Any]
    table: Table
    note: str = ""


def blank_layout(height: int, x_title: str, y_title: str) -> dict[str, Any]:
    axis = {
        "gridcolor": "var(--rule)",
        "zeroline": False,
        "linecolor": MUTED,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": MUTED,
        "fixedrange": True,
        "automargin": True,
    }
    return {
        "height": height,
        "autosize": True,
        "dragmode": False,
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "size": 13},
        "margin": {"l": 8, "r": 8, "t": 44, "b": 8, "pad": 0},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"bgcolor": "var(--paper)", "bordercolor": MUTED, "font": {"color": INK}},
        "xaxis": {**axis, "title": {"text": x_title, "standoff": 8}},
        "yaxis": {**axis, "title": {"text": y_title, "standoff": 6}},
    }


def error_bars(figures: Sequence[Figure], colour: str) -> dict[str, Any]:
    if not any(figure.low is not None and figure.high is not None for figure in figures):
        return {"visible": False}
    above = [max(0.0, (figure.high if figure.high is not None else figure.mean) - figure.mean) for figure in figures]
    below = [max(0.0, figure.mean - (figure.low if figure.low is not None else figure.mean)) for figure in figures]
    style = {"color": colour, "thickness": 1.2, "width": 0}
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **style}


def dotted_line(x: float | None = None, y: float | None = None) -> dict[str, Any]:
    """A dotted line across the whole chart at ``x`` or at ``y``."""
    ends = (
        {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
        if x is not None
        else {"y0": y, "y1": y, "x0": 0, "x1": 1, "xref": "paper"}
    )
    return {"type": "line", "layer": "below", "line": {"color": MUTED, "width": 1, "dash": "dot"}, **ends}


def label_at(text: str, color: str = MUTED, **place: Any) -> dict[str, Any]:
    return {"text": text, "showarrow": False, "font": {"size": 12, "color": color}, "borderpad": 2, **place}
