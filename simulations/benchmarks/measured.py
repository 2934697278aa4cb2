"""A measured row: ours, the twin, their ratio and its target; two things timed in turns; the machine they ran on."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from simulations.protocols.suite import machine as judged_on
from spact_models import __version__
from spact_models.seeds import pick_device

REGRESSION = 0.15  # a ratio may be so much worse than the kept one: two cores with other work scatter by about that


@dataclass(frozen=True)
class Spread:
    """The median of the repeats, and their smallest and largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def times(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.low * factor, self.high * factor)

    @property
    def turned(self) -> Spread:
        """Of the ratios' reciprocals: ours over the twin's, where less is better."""
        return Spread(1 / self.median, 1 / self.high, 1 / self.low)


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

    def worse_than(self, kept: float) -> bool:
        """Whether the judged figure fell behind a kept one by more than ``REGRESSION`` of it."""
        if self.rule == "at least":
            return self.judged < kept * (1 - REGRESSION)
        return self.judged > kept * (1 + REGRESSION)


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
