"""What it takes to see a comparison again: its seeds, attackers, judge, versions, and every setting."""

from __future__ import annotations

from pathlib import Path

from simulations.report.arm_words import task_of
from simulations.report.collect import ComparisonStory
from simulations.report.run_tables import settings_table
from simulations.report.tables import Cell, Line, Table
from simulations.report.words import moment, name_of, pairs


def comparison_facts(comparison: ComparisonStory) -> Table:
    """Seeds, attackers, the judge's budget, versions, dates."""
    told = comparison.content
    settings = told.get("settings") or {}
    budget = {key.removeprefix("judge."): value for key, value in settings.items() if key.startswith("judge.")}
    size = f"{settings['clip.frames']} frames at {settings['clip.size_px']} px" if "clip.frames" in settings else None
    devices = {str(cell.get("device")) for cell in told.get("arms") or [] if cell.get("device")}
    lent = {str(cell.get("trained_in")) for cell in told.get("arms") or [] if cell.get("trained_in")}
    facts = {
        "made": moment(told.get("created")),
        "asked": name_of(task_of(comparison)),
        "sites": told.get("sites"),
        "splits": ", ".join(told.get("partitions") or []),
        "seeds of training and judge": ", ".join(map(str, told.get("seeds") or [])),
        "attackers": ", ".join(map(name_of, told.get("attackers") or [])),
        "fresh action network": settings.get("networks.action"),
        "the judge's budget": pairs(budget),
        "clips": size,
        "test videos, clips": ", ".join(str(told[key]) for key in ("test_videos", "test_clips") if key in told),
        "manifest": Path(told["manifest"]).name if told.get("manifest") else None,
        "trained in": ", ".join(sorted(lent)),
        "device": ", ".join(sorted(devices)),
        "versions": pairs(told.get("versions")),
    }
    lines = [Line(Cell(name), [Cell(str(value))]) for name, value in facts.items() if value not in (None, "")]
    return Table("To see the same again", ["", "value"], lines, numeric=False)


def comparison_settings(comparison: ComparisonStory) -> Table:
    """The settings that all its arms share."""
    return settings_table(comparison.content.get("settings") or {})
