"""What a run is doing right now: ``status.json`` in the run folder, for those who watch, and figures for Prometheus.

Both show the same few facts: the open round, its deadline, what each site is up to, and totals over the run. They hold
nothing that ``metrics.jsonl`` does not come to hold.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from server.prometheus import Exporter
from server.records import Dropped, RoundRecord, SiteRecord
from server.round import Round
from spact_models.settings import Settings

LOG = logging.getLogger("fedspact.server")
STATUS = "status.json"
LEAST_SECONDS = 0.5  # between two writes within a round: a thousand replies are not a thousand files
ASKED, REPLIED, LEFT_OUT = "working", "replied", "left out"


@dataclass
class SiteStatus:
    """One site in the open or the last round."""

    state: str  # working | replied | left out
    seconds: float = 0.0  # from the request to the reply
    reason: str = ""  # why it is left out


@dataclass
class Totals:
    """Over all rounds of the run, those before a resume included."""

    rounds: int = 0  # train rounds, void ones included
    void_rounds: int = 0
    left_out: int = 0  # site-rounds, train and evaluate
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0  # of closed rounds

    def add(self, record: RoundRecord) -> None:
        train = record.kind == "train"
        self.rounds += int(train)
        self.void_rounds += int(train and record.void)
        self.left_out += len(record.dropped)
        self.bytes_up += record.bytes_up
        self.bytes_down += record.bytes_down
        self.seconds += record.seconds


@dataclass
class RunStatus:
    """Follows the rounds (server/round.py: Observer).

    Args:
        folder: the run folder.
        settings: the run's.
        past: the rounds of a resumed run's earlier parts.
        clock: seconds since 1970.
    """

    folder: Path
    settings: Settings
    past: Sequence[RoundRecord] = ()
    clock: Callable[[], float] = time.time
    stage: str = "waiting for sites"  # | training | evaluating | between rounds | ended
    round: int = 0
    phase: str = ""
    opened_at: float = 0.0
    deadline_seconds: float = 0.0
    sites: dict[str, SiteStatus] = field(default_factory=dict)
    last: dict[str, dict[str, float]] = field(default_factory=dict)  # kind -> the last valid round's means
    totals: Totals = field(default_factory=Totals)
    _written_at: float = 0.0
    _exporter: Exporter | None = None

    def __post_init__(self) -> None:
        for record in self.past:
            self._count(record)
        self.round = max((record.round for record in self.past), default=0)

    def __enter__(self) -> RunStatus:
        watch = self.settings.watch
        if watch.metrics_port:
            self._exporter = Exporter(self, watch.metrics_host, watch.metrics_port)
        self._write(at_once=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stage = "ended" if error is None else f"stopped: {str(error)[:500] or type(error).__name__}"
        self._write(at_once=True)
        if self._exporter is not None:
            self._exporter.close()

    def opened(self, current: Round, names: Iterable[str]) -> None:
        self.stage = "training" if current.kind == "train" else "evaluating"
        self.round, self.phase = current.number, current.phase
        self.opened_at, self.deadline_seconds = self.clock(), current.deadline_seconds
        self.sites = {name: SiteStatus(ASKED) for name in names}
        for drop in current.dropped:
            self.sites[drop.name] = SiteStatus(LEFT_OUT, reason=drop.reason)
        self._write(at_once=True)

    def heard(self, site: SiteRecord) -> None:
        self.sites[site.name] = SiteStatus(REPLIED, site.seconds)
        self._write()

    def dropped(self, drop: Dropped) -> None:
        """A site's second reply does not undo its first."""
        if self.sites.get(drop.name, SiteStatus(ASKED)).state != REPLIED:
            self.sites[drop.name] = SiteStatus(LEFT_OUT, reason=drop.reason)
        self._write()

    def closed(self, record: RoundRecord) -> None:
        self._count(record)
        self.stage = "between rounds"
        self._write(at_once=True)

    def _count(self, record: RoundRecord) -> None:
        self.totals.add(record)
        if not record.void:
            self.last[record.kind] = dict(record.metrics)

    def to_json(self) -> dict[str, Any]:
        """As plain types; times are seconds since 1970."""
        return {
            "updated_at": self.clock(),
            "process": os.getpid(),
            "stage": self.stage,
            "round": self.round,
            "rounds_planned": self.settings.total_rounds,
            "phase": self.phase,
            "opened_at": self.opened_at,
            "deadline_seconds": self.deadline_seconds,
            "sites": {name: vars(site) for name, site in self.sites.items()},
            "last": self.last,
            "totals": vars(self.totals),
        }

    def _write(self, at_once: bool = False) -> None:
        """Replace the file in one step. It is a convenience: a disk that refuses it does not stop the run."""
        now = self.clock()
        if not at_once and now - self._written_at < LEAST_SECONDS:
            return
        self._written_at = now
        path, temporary = self.folder / STATUS, self.folder / f".{STATUS}.tmp"
        try:
            temporary.write_text(json.dumps(self.to_json(), sort_keys=True) + "\n", encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            LOG.warning("%s: cannot be written (%s)", path, error.strerror or error)
