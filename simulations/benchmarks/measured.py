"""A measured row: ours, the twin, their ratio and its target; two things timed in turns; the machine they ran on.

What is a regression is decided here too, row by row, between a new row and a kept one.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch

from simulations.protocols.suite import machine as judged_on
from spact_models import __version__
from spact_models.seeds import pick_device

REGRESSION = 0.15  # a ratio may be so much worse than the kept one: two cores with other work scatter by about that
BYTES, OF_BYTES = ("MB", "% of float32"), 0.01  # sizes that are counted: they do not scatter
MEMORY = ("GiB", "models")  # sizes that are measured, the same on every machine but for a few MB


@dataclass(frozen=True)
class Spread:
    """The median of the repeats, their smallest and largest, and how many there were."""

    median: float
    low: float
    high: float
    repeats: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def times(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.repeats)

    @property
    def turned(self) -> Spread:
        """Of the ratios' reciprocals: ours over the twin's, where less is better."""
        return Spread(1 / self.median, 1 / self.high, 1 / self.low, self.repeats)

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Spread:
        """What ``asdict`` gave.

        Raises:
            KeyError, TypeError, ValueError: something is missing or no finite number, or lowest and highest do not
                enclose the median.
        """
        median, low, high = (float(kept[name]) for name in ("median", "low", "high"))
        if not all(map(math.isfinite, (median, low, high))) or not low <= median <= high:
            raise ValueError(f"median {median}, lowest {low}, highest {high}")
        return cls(median, low, high, int(kept.get("repeats", 1)))


@dataclass(frozen=True)
class Row:
    """One line of the table. ``twin`` None: a figure that stands against its target alone.

    ``ratio``: what the target is about; of two timings, the twin's over ours (above 1 = ours is faster), each repeat's
    with its own partner.
    """

    name: str
    what: str
    unit: str
    ours: Spread
    twin: Spread | None
    ratio: Spread | None
    target: float | None  # None: reported, with no target
    rule: Literal["at least", "at most"]
    note: str = ""

    @property
    def judged(self) -> float:
        """The figure that the target is about."""
        return self.ratio.median if self.ratio is not None else self.ours.median

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.judged >= self.target if self.rule == "at least" else self.judged <= self.target

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "judged": self.judged, "met": self.met}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Row:
        """What :meth:`to_json` gave; what follows from the rest is not read.

        Raises:
            KeyError, TypeError, ValueError: something is missing or cannot be.
        """
        found = {field.name: kept[field.name] for field in fields(cls)}
        if found["rule"] not in ("at least", "at most"):
            raise ValueError(f"rule {found['rule']!r}")
        for name in ("ours", "twin", "ratio"):
            found[name] = None if found[name] is None and name != "ours" else Spread.from_json(found[name])
        found["target"] = None if found["target"] is None else float(found["target"])
        return cls(**found)

    @property
    def compared_by(self) -> Literal["ratio", "size", "target"] | None:
        """By what two machines or two days may be compared: seconds and speeds without a twin by their target alone."""
        if self.ratio is not None:
            return "ratio"
        if self.unit in BYTES + MEMORY:
            return "size"
        return None if self.target is None else "target"

    def worse_than(self, kept: Row) -> bool:
        """Whether this is a regression.

        A ratio: its median is worse by more than ``REGRESSION``, and the worst kept repeat is better than the best of
        these. A size: worse by more than it scatters, or its target is missed now and was met. Another figure: its
        target is missed now and was met.
        """
        lost = self.met is False and kept.met is True
        if self.compared_by == "ratio" and kept.ratio is not None and self.ratio is not None:
            if self.rule == "at least":
                return self.judged < kept.judged * (1 - REGRESSION) and self.ratio.high < kept.ratio.low
            return self.judged > kept.judged * (1 + REGRESSION) and self.ratio.low > kept.ratio.high
        if self.compared_by == "size":
            behind = self.judged - kept.judged if self.rule == "at most" else kept.judged - self.judged
            return lost or behind > kept._scatter
        return lost

    @property
    def _scatter(self) -> float:
        """How far a size may move: a measured one near zero by a share of its target."""
        if self.unit in BYTES:
            return OF_BYTES * abs(self.judged)
        return REGRESSION * max(abs(self.judged), abs(self.target or 0.0))


@dataclass(frozen=True)
class Record:
    """A row, and the machine as it was when the row was measured."""

    row: Row
    machine: Mapping[str, Any]

    @classmethod
    def taken(cls, row: Row) -> Record:
        return cls(row, machine())

    def to_json(self) -> dict[str, Any]:
        return {**self.row.to_json(), "machine": dict(self.machine)}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Record:
        """What :meth:`to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: something is missing or cannot be.
        """
        here = kept["machine"]
        if not isinstance(here, Mapping) or not isinstance(here.get("versions"), Mapping):
            raise TypeError(f"machine {here!r}")
        return cls(Row.from_json(kept), here)


def in_turns(
    ours: Callable[[], object], twin: Callable[[], object], repeats: int, on_step: Callable[[], object]
) -> tuple[Spread, Spread, Spread]:
    """Ours and the twin, one after the other, again and again: seconds of each, and the ratio of each pair.

    Both run once before the first is timed. Who begins a pair changes, so that a machine that slows down or wakes up
    favours neither.
    """
    for work in (ours, twin):
        work()
        on_step()
    pairs = []
    for number in range(repeats):
        order = (ours, twin) if number % 2 == 0 else (twin, ours)
        took = {}
        for work in order:
            took[work] = seconds_of(work)
            on_step()
        pairs.append((took[ours], took[twin]))
    own, other = zip(*pairs, strict=True)
    return Spread.of(own), Spread.of(other), Spread.of([b / a for a, b in pairs])


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time, with the garbage of what was before collected first and the GPU waited for."""
    gc.collect()
    _wait()
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """What the rows were measured on."""
    import flwr

    return {
        **judged_on(pick_device("auto")),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {
            "fedspact": __version__,
            "torch": torch.__version__,
            "flwr": flwr.__version__,
            "python": platform.python_version(),
        },
    }
