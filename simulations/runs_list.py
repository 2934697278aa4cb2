"""``fedspact runs``: the run folders and comparisons below a folder, one line each with its key figures."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spact_models.errors import UserError

SORT_KEYS = ("when", "name", "action", "leakage", "seconds", "rounds")
NAME_SHORT, NAME_LEAST = 28, 12  # characters that a long name keeps where there is little room, and very little
WIDE = 200  # columns where the output is no terminal


@dataclass(frozen=True)
class Listed:
    """One run or comparison; shares in 0…1, None where unknown."""

    path: str
    name: str
    kind: str  # federated | centralized | comparison
    state: str  # complete | unfinished
    when: str  # UTC, ISO 8601
    sites: int | None = None
    rounds_done: int | None = None
    rounds_planned: int | None = None
    action: float | None = None
    task: str | None = None  # what the strongest attacker was asked
    leakage: float | None = None
    raw_action: float | None = None
    raw_leakage: float | None = None
    chance: float | None = None  # of the task
    seconds: float | None = None
    seed: int | None = None
    preset: str | None = None


@dataclass(frozen=True)
class Column:
    """A column of the table; those with the highest ``drop`` go first when the terminal is narrow."""

    head: str
    text: Callable[[Listed], str]
    drop: int
    left: bool = False


COLUMNS = (
    Column("run", lambda one: one.name, 0, left=True),
    Column("kind", lambda one: one.kind, 3, left=True),
    Column("when (UTC)", lambda one: one.when[:16].replace("T", " "), 5, left=True),
    Column("sites", lambda one: _whole(one.sites), 6),
    Column("rounds", lambda one: _rounds(one), 2),
    Column("state", lambda one: one.state, 1, left=True),
    Column("action", lambda one: _share(one.action), 0),
    Column("raw", lambda one: _share(one.raw_action), 8),
    Column("attack", lambda one: (one.task or "–").replace("_", " "), 4, left=True),
    Column("leakage", lambda one: _share(one.leakage), 0),
    Column("raw", lambda one: _share(one.raw_leakage), 7),
    Column("chance", lambda one: _share(one.chance), 2),
    Column("seconds", lambda one: "–" if one.seconds is None else f"{one.seconds:.0f}", 9),
    Column("seed", lambda one: _whole(one.seed), 10),
    Column("preset", lambda one: one.preset or "–", 11, left=True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact runs``."""
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), metavar="FOLDER", help="where (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="everything, as a JSON list")
    parser.add_argument(
        "--sort", choices=SORT_KEYS, default="when", help="newest, best or longest first; name: a to z (default: when)"
    )


def run(args: argparse.Namespace) -> int:
    """List what is there; folders that cannot be understood are named on stderr."""
    found, trouble = find_runs(args.folder)
    found = ordered(found, args.sort)
    if args.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    elif found:
        print(table(found, shutil.get_terminal_size((WIDE, 24)).columns if sys.stdout.isatty() else WIDE))
    else:
        print(f"no runs in {args.folder}; fedspact demo makes one")
    for message in trouble:
        print(f"left out: {message}", file=sys.stderr)
    return 0


def find_runs(folder: Path) -> tuple[list[Listed], list[str]]:
    """Every run and comparison in ``folder`` (or that it is itself), and why others were left out.

    Raises:
        UserError: there is no such folder.
    """
    from server.runs import SETTINGS
    from simulations.report.collect import CELLS, COMPARISON

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Name the one that holds the runs: fedspact runs FOLDER")
    places = [folder, *sorted(entry for entry in folder.iterdir() if entry.is_dir())]
    found, trouble = [], []
    for place in places:
        try:
            if (place / COMPARISON).is_file() or (place / CELLS).is_dir():
                found.append(_comparison(place))
            elif (place / SETTINGS).is_file():
                found.append(_run(place))
        except UserError as error:
            trouble.append(str(error))
    return found, trouble


def ordered(found: Sequence[Listed], key: str) -> list[Listed]:
    """Sorted so that the interesting end comes first; what is unknown comes last."""
    if key == "name":
        return sorted(found, key=lambda one: one.name)
    field = {"rounds": "rounds_done"}.get(key, key)
    known = [one for one in found if getattr(one, field) is not None]
    rest = [one for one in found if getattr(one, field) is None]
    return [*sorted(known, key=lambda one: getattr(one, field), reverse=key != "leakage"), *rest]


def table(found: Sequence[Listed], width: int) -> str:
    """The table; where ``width`` characters do not hold it, with shorter names, then fewer columns."""
    kept = list(COLUMNS)
    if _width(kept, found) > width:
        found = [replace(one, name=_cut(one.name, NAME_SHORT)) for one in found]
    while _width(kept, found) > width and any(column.drop for column in kept):
        kept.remove(max(kept, key=lambda column: column.drop))
    over = _width(kept, found) - width
    if over > 0:
        least = max(NAME_LEAST, max(len(one.name) for one in found) - over)
        found = [replace(one, name=_cut(one.name, least)) for one in found]
    lines = [[column.head for column in kept], *([column.text(one) for column in kept] for one in found)]
    sizes = [max(map(len, column)) for column in zip(*lines, strict=True)]
    out = [
        "  ".join(
            cell.ljust(size) if column.left else cell.rjust(size)
            for cell, size, column in zip(line, sizes, kept, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([out[0], "─" * min(width, sum(sizes) + 2 * len(sizes) - 2), *out[1:]])


def _run(path: Path) -> Listed:
    from simulations.report.collect import open_run
    from simulations.report.judged import ANONYMIZED, RAW

    story = open_run(path)
    figures: dict[str, Any] = {}
    if story.judged is not None:
        judged, task = story.judged, story.judged.main_task
        for prefix, name in (("", ANONYMIZED), ("raw_", RAW)):
            seen = judged.representations.get(name)
            leakage = seen.leakage(task) if seen and task else None
            figures[f"{prefix}action"] = seen.action.mean if seen and seen.action else None
            figures[f"{prefix}leakage"] = leakage.mean if leakage else None
        figures |= {"task": task, "chance": judged.chance.get(task or "")}
    return Listed(
        path=str(path),
        name=path.name,
        kind=story.kind,
        state="complete" if story.finished else "unfinished",
        when=story.created,
        sites=story.sites,
        rounds_done=story.rounds_done,
        rounds_planned=story.rounds_planned,
        seconds=story.summary.get("seconds"),
        seed=story.settings.get("seed"),
        preset=story.settings.get("preset"),
        **figures,
    )


def _comparison(path: Path) -> Listed:
    """A comparison speaks through its first federated arm."""
    from simulations.report.collect import COMPARISON, open_comparison

    if not (path / COMPARISON).is_file():
        return Listed(str(path), path.name, "comparison", "unfinished", "")
    content = open_comparison(path).content
    arms = [arm for arm in content["summary"] if arm.get("arm") == "federated"]
    raws = [arm for arm in content["summary"] if arm.get("arm") == "raw"]
    chance = {task: value for task, value in (content.get("chance") or {}).items() if task != "action"}
    return Listed(
        path=str(path),
        name=path.name,
        kind="comparison",
        state="complete",
        when=str(content.get("created", "")),
        sites=content.get("sites"),
        action=_mean(arms, "action"),
        task=next(iter(chance), None),
        leakage=_mean(arms, "leakage"),
        raw_action=_mean(raws, "action"),
        raw_leakage=_mean(raws, "leakage"),
        chance=next(iter(chance.values()), None),
        preset=(content.get("settings") or {}).get("preset"),
    )


def _mean(arms: Sequence[dict[str, Any]], name: str) -> float | None:
    return (arms[0].get(name) or {}).get("mean") if arms else None


def _width(columns: Sequence[Column], found: Sequence[Listed]) -> int:
    sizes = [max(len(column.head), *(len(column.text(one)) for one in found)) for column in columns]
    return sum(sizes) + 2 * (len(sizes) - 1)


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _whole(value: int | None) -> str:
    return "–" if value is None else str(value)


def _rounds(one: Listed) -> str:
    return "–" if one.rounds_done is None else f"{one.rounds_done}/{one.rounds_planned}"
