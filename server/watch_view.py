"""What a run folder tells, as a view for people: pure functions from its files to text."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from server.runs import SUMMARY, RunFolder
from server.status import STATUS

SHOWN_DROPS = 5
RECENT_ROUNDS = 5  # whose seconds the estimate of the time left rests on
STALE_SECONDS = 120.0  # a stage without an end that has not been heard of for so long beyond its deadline
UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class View:
    """One look at a run folder."""

    name: str
    settings: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl
    status: Mapping[str, Any] = field(default_factory=dict)  # status.json; empty: none
    complete: bool = False
    looked_at: float = 0.0  # seconds since 1970

    @property
    def trained(self) -> list[Mapping[str, Any]]:
        return [line for line in self.rounds if line["kind"] == "train"]

    @property
    def done(self) -> int:
        return max((int(line["round"]) for line in self.trained), default=0)

    @property
    def planned(self) -> int:
        return int(self.settings.get("rounds.warmup", 0)) + int(self.settings.get("rounds.minimax", 0))

    @property
    def stage(self) -> str:
        """In words; a run whose process died says so once its deadline is long past."""
        if self.complete:
            return "complete"
        stage = str(self.status.get("stage", "no status yet"))
        if stage == "ended" or stage.startswith("stopped"):
            return stage
        silent = self.looked_at - float(self.status.get("updated_at", self.looked_at))
        if silent > float(self.status.get("deadline_seconds", 0.0)) + STALE_SECONDS:
            return f"{stage}, but nothing was heard for {duration(silent)}: has its process ended?"
        return stage

    @property
    def ended(self) -> bool:
        return self.complete or self.stage == "ended" or self.stage.startswith("stopped")

    @property
    def seconds_left(self) -> float | None:
        """From the last rounds of the phase that comes next; None before there is one."""
        if self.ended or not self.trained:
            return None
        of_phase = [line for line in self.trained if line["phase"] == self._phase(self.done + 1)] or self.trained
        recent = [float(line["seconds"]) for line in of_phase[-RECENT_ROUNDS:]]
        open_for = 0.0
        if int(self.status.get("round", 0)) > self.done:
            open_for = self.looked_at - float(self.status.get("opened_at") or self.looked_at)
        return max(0.0, sum(recent) / len(recent) * (self.planned - self.done) - open_for)

    def _phase(self, server_round: int) -> str:
        return "warmup" if server_round <= int(self.settings.get("rounds.warmup", 0)) else "minimax"

    def total(self, name: str) -> float:
        return sum(float(line[name]) for line in self.rounds)

    def sites(self) -> list[tuple[str, str, str]]:
        """Name, state and detail of each site: of the open round where there is one, else of the last one."""
        told = self.status.get("sites") or {}
        if told and not self.complete:
            return [(name, str(site["state"]), _detail(site)) for name, site in sorted(told.items())]
        if not self.trained:
            return []
        last = self.trained[-1]
        replied = [(str(site["name"]), "replied", _reply(site)) for site in last["sites"]]
        return sorted(replied + [(str(drop["name"]), "left out", str(drop["reason"])) for drop in last["dropped"]])

    def drops(self) -> list[str]:
        """The last sites that were left out, and why, newest first."""
        found = [
            f"round {line['round']} ({line['kind']}): {drop['name']}: {drop['reason']}"
            for line in self.rounds
            for drop in line["dropped"]
        ]
        return found[::-1][:SHOWN_DROPS]


def look(path: Path, now: float | None = None) -> View:
    """Read a run folder as it stands.

    Raises:
        UserError: it is none.
    """
    folder = RunFolder.open(path)
    try:
        status = json.loads((path / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or of a run before there was one
        status = {}
    looked_at = time.time() if now is None else now
    return View(path.name, folder.settings(), folder.history(), status, (path / SUMMARY).exists(), looked_at)


def panel(view: View) -> RenderableType:
    """The whole view, for a terminal."""
    head = Text.assemble((f"{view.name}  ", "bold"), f"round {view.done} of {view.planned}, {view.stage}")
    numbers = Text("   ".join(figures(view)))
    bar = ProgressBar(total=max(1, view.planned), completed=view.done)
    sites = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("site", "state", ""):
        sites.add_column(column, overflow="fold")
    for name, state, detail in view.sites():
        colour = {"replied": "green", "left out": "red"}.get(state, "yellow")
        sites.add_row(Text(name), Text(state, style=colour), Text(detail))  # a site's own words: no markup
    parts: list[RenderableType] = [head, bar, numbers, Text(""), sites, Text(""), rounds_table(view.rounds[-8:])]
    if view.drops():
        parts += [Text(""), Text("left out, newest first", style="bold"), *map(Text, view.drops())]
    return Group(*parts)


def rounds_table(lines: Iterable[Mapping[str, Any]]) -> Table:
    """A row a round."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("round", "kind", "phase", "sites", "left out", "L_T", "L_B", "top-1", "up", "seconds"):
        table.add_column(column, justify="left" if column in ("kind", "phase") else "right")
    for line in lines:
        table.add_row(*cells(line))
    return table


def cells(line: Mapping[str, Any]) -> list[str]:
    metrics = line["metrics"]
    shown = [_number(metrics.get(name)) for name in ("loss.action", "loss.privacy", "top1")]
    kind = f"{line['kind']} (void)" if line["void"] else str(line["kind"])
    counts = [str(len(line["sites"])), str(len(line["dropped"]))]
    return [str(line["round"]), kind, line["phase"], *counts, *shown, size(line["bytes_up"]), f"{line['seconds']:.1f}"]


def figures(view: View) -> list[str]:
    """Bytes, void rounds, sites left out, the time left."""
    void = sum(bool(line["void"]) for line in view.trained)
    out = [f"up {size(view.total('bytes_up'))}", f"down {size(view.total('bytes_down'))}"]
    out += [f"void rounds {void}"] if void else []
    left_out = sum(len(line["dropped"]) for line in view.rounds)
    out += [f"left out {left_out}"] if left_out else []
    if view.seconds_left is not None:
        out.append(f"about {duration(view.seconds_left)} left")
    return out


def plain(view: View) -> str:
    """The run in one line, and a line for each site that is not well."""
    lines = [f"{view.name}: round {view.done}/{view.planned}, {view.stage}; {', '.join(figures(view))}"]
    return "\n".join(lines + [f"  {name}: {state}: {detail}" for name, state, detail in view.sites()])


def plain_round(line: Mapping[str, Any]) -> str:
    """A finished round in one line."""
    number, kind, phase, sites, dropped, action, privacy, top1, up, seconds = cells(line)
    words = [f"round {number} {kind} ({phase}): {sites} sites, {dropped} left out"]
    words += [f"L_T {action}, L_B {privacy}" if line["kind"] == "train" else f"top-1 {top1}", f"up {up}, {seconds} s"]
    words += [f"{drop['name']}: {drop['reason']}" for drop in line["dropped"]]
    return "; ".join(words)


def size(count: float) -> str:
    """Bytes in powers of 1000."""
    power = min(len(UNITS) - 1, int(math.log(count, 1000))) if count >= 1000 else 0
    return f"{count / 1000**power:.{0 if power == 0 else 1}f} {UNITS[power]}"


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole / 3600:.1f} h"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3f}"


def _detail(site: Mapping[str, Any]) -> str:
    return str(site["reason"]) or (f"after {site['seconds']:.1f} s" if site["seconds"] else "")


def _reply(site: Mapping[str, Any]) -> str:
    told = site["metrics"]
    named = {"L_T": "loss.action", "L_B": "loss.privacy"}
    return "  ".join(f"{short} {told[name]:.3f}" for short, name in named.items() if name in told)
