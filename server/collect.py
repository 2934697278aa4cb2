"""What becomes of a round's replies: a mean as they arrive, a robust rule over all of them, or a masked sum."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flwr.app import MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from server.aggregate import RejectedUpdate, StreamingMean, checked_count, claimed_examples, widened
from server.masked import masked_records
from server.records import finite_metrics
from server.robust import SpooledRule, bounded
from server.secure_sum import SecureSum, Void
from spact_models.settings import Settings

LOG = logging.getLogger("fedspact.server")


@dataclass
class Collected:
    """How the weights are to move: by name, float32, of the branches that somebody taught; empty: not at all."""

    mean: dict[str, Tensor]
    sites: int  # behind it
    within: int = 0  # of them, as they say, were no longer than the clip norm (dp.adaptive_quantile)
    reason: str = ""  # why a branch, or everything, stays as it is


class Collector(Protocol):
    """Takes the replies of one round one after the other."""

    def add(self, content: RecordDict, node: int) -> dict[str, float]:
        """Check one reply and take its update in; returns the figures that it tells.

        Raises:
            RejectedUpdate: it cannot be used; it has left no trace.
        """

    def close(self) -> Collected:
        """All replies are there."""

    def discard(self) -> None:
        """They were too few: nothing of them is used."""


class PlainCollector:
    """Single updates are seen: checked, bounded where the run says so, and given to the rule.

    Args:
        settings: the run's.
        shapes: every name that may come, with its shape.
        spool: an empty folder for the updates of one round, which the robust rules need; None: a temporary one.
        name: of a node's site, for the log.
        bound: L2 to which a longer update is scaled down; 0: none.
    """

    def __init__(
        self,
        settings: Settings,
        shapes: Mapping[str, tuple[int, ...]],
        spool: Path | None,
        name: Callable[[int], str],
        bound: float,
    ) -> None:
        self._settings = settings
        self._shapes = shapes
        self._name = name
        self._bound = bound
        self._within = 0
        self._nodes: list[int] = []  # in order of arrival, as the updates
        strategy = settings.strategy
        self._rule: StreamingMean | SpooledRule = (
            StreamingMean(shapes, strategy.max_examples, strategy.weighting)
            if strategy.aggregation == "mean"
            else SpooledRule(shapes, strategy, spool)
        )

    def add(self, content: RecordDict, node: int) -> dict[str, float]:
        update, metrics = content.array_records.get("update"), content.metric_records.get("metrics")
        if update is None or metrics is None:
            raise RejectedUpdate("the reply lacks the record 'update' or 'metrics'")
        private = self._settings.dp.on
        if private and set(claimed_examples(metrics).values()) != {1}:
            raise RejectedUpdate("with dp.unit on, every site sends both f_A and f_T and weighs 1")
        told, scales = finite_metrics(metrics), content.metric_records.get("scales", MetricRecord())
        bound, within = self._bound, 0
        if self._settings.dp.adaptive_quantile > 0:
            within = checked_count("within_clip", metrics.get("within_clip"), 1)
            told = {name: value for name, value in told.items() if name != "within_clip"}  # told without noise, to us
        if bound == 0:
            self._rule.add(update, claimed_examples(metrics), scales)
        else:
            short, norm = bounded(widened(update, scales), self._shapes, bound)
            self._rule.add(short, claimed_examples(metrics))
            if not private:  # otherwise the norm itself is private
                told = {**told, "norm.update": norm}
                if norm > bound:
                    LOG.warning("site %s: its update is %.3g long, scaled down to %g", self._name(node), norm, bound)
        self._nodes.append(node)
        self._within += within
        return told

    def close(self) -> Collected:
        rule, count = self._rule, len(self._nodes)
        if not isinstance(rule, SpooledRule):
            return Collected(rule.mean(), count, self._within)
        try:
            mean = rule.mean()
            for prefix, chosen in rule.chosen.items():
                taken = ", ".join(self._name(self._nodes[number]) for number in chosen)
                LOG.info("%s takes %s from %s", self._settings.strategy.aggregation, prefix[:-1], taken)
            return Collected(mean, count, reason="; ".join(rule.unmoved))
        finally:
            rule.close()

    def discard(self) -> None:
        if isinstance(self._rule, SpooledRule):
            self._rule.close()


class SecureCollector:
    """Single updates are masked: they are added, and the sum is opened when all are there.

    Args:
        secure: the round's sum, begun.
        grid: over which the sites are asked to open it.
    """

    def __init__(self, secure: SecureSum, grid: Grid) -> None:
        self._secure = secure
        self._grid = grid

    def add(self, content: RecordDict, node: int) -> dict[str, float]:
        metrics = content.metric_records.get("metrics")
        if metrics is None:
            raise RejectedUpdate("the reply lacks the record 'metrics'")
        told = finite_metrics(metrics)
        self._secure.add(*masked_records(content), node)
        return told

    def close(self) -> Collected:
        try:
            mean, sites = self._secure.open(self._grid)
        except Void as void:
            return Collected({}, 0, reason=str(void))
        return Collected(mean, sites, reason="" if mean else "no site taught a branch")

    def discard(self) -> None:
        """The masks stay on: nobody is asked to open the sum."""
