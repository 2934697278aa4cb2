"""What one round was: who took part, who was left out and why, the metrics, the bytes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import MetricRecord

from server.aggregate import RejectedUpdate

MOST_METRICS, LONGEST_METRIC = 64, 64  # a site of ours tells some ten


@dataclass(frozen=True)
class SiteRecord:
    """One site's valid reply. ``metrics`` holds its finite numbers as the site reported them."""

    node: int
    name: str
    metrics: Mapping[str, float]
    bytes_down: int
    bytes_up: int
    seconds: float = 0.0  # from the request to the reply, as the server saw it; 0: not told


@dataclass(frozen=True)
class Dropped:
    """One site without a part in the round, and the reason."""

    node: int
    name: str
    reason: str
    late: bool = False  # it did not reply in time


@dataclass(frozen=True)
class RoundRecord:
    """One line of ``metrics.jsonl``: a train or an evaluate round."""

    kind: str  # "train" | "evaluate"
    round: int  # 1-based
    phase: str  # "warmup" | "minimax"
    void: bool  # too few valid replies: the weights did not change
    reason: str  # why it is void; empty otherwise
    metrics: Mapping[str, float]  # means over the sites, weighted by their examples
    sites: Sequence[SiteRecord] = field(default_factory=tuple)
    dropped: Sequence[Dropped] = field(default_factory=tuple)
    bytes_down: int = 0  # serialised bytes of all requests (server/wire.py)
    bytes_up: int = 0  # and of all replies, the dropped ones included
    seconds: float = 0.0
    deadline_seconds: float = 0.0  # how long the round would have waited; 0: not told
    secure: Mapping[str, object] = field(default_factory=dict)  # of a masked sum: who was in it, what opened it

    def to_json(self) -> dict[str, Any]:
        """As plain types. Node ids become text: they have 64 bits, and many JSON readers keep 53."""
        out = dataclasses.asdict(self)
        for entry in [*out["sites"], *out["dropped"]]:
            entry["node"] = str(entry["node"])
        return out

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> RoundRecord:
        """What :meth:`to_json` wrote; a field that is newer than the writer has its default."""
        sites = tuple(SiteRecord(**{**entry, "node": int(entry["node"])}) for entry in told["sites"])
        dropped = tuple(Dropped(**{**entry, "node": int(entry["node"])}) for entry in told["dropped"])
        return cls(**{**told, "sites": sites, "dropped": dropped})


def finite_metrics(metrics: MetricRecord) -> dict[str, float]:
    """The single finite numbers; lists and NaN are left out, so that one site cannot spoil a mean.

    Raises:
        RejectedUpdate: more of them, or longer names, than any site of ours tells: each becomes a curve and a label.
    """
    if len(metrics) > MOST_METRICS or any(len(name) > LONGEST_METRIC for name in metrics):
        longest = max(map(len, metrics), default=0)
        raise RejectedUpdate(
            f"{len(metrics)} metrics with names of up to {longest} characters, must be at most {MOST_METRICS} with at "
            f"most {LONGEST_METRIC}"
        )
    return {name: value for name, value in metrics.items() if isinstance(value, int | float) and math.isfinite(value)}


def weighted_means(sites: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Each metric's mean over the sites that report it, weighted by their examples; counts are summed.

    The weight is ``examples`` in an evaluation. In training it is ``examples.action`` for a metric that ends in
    ``.action`` and the larger of the two branches' counts for the others.
    """
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for metrics in sites:
        for name, value in metrics.items():
            if name.split(".")[0] == "examples":
                sums[name] = sums.get(name, 0) + value
            elif name != "teacher_held" and (weight := _weight(metrics, name)) > 0:
                sums[name] = sums.get(name, 0.0) + weight * value
                weights[name] = weights.get(name, 0.0) + weight
    return {name: total / weights[name] if name in weights else total for name, total in sorted(sums.items())}


def _weight(metrics: Mapping[str, float], name: str) -> float:
    if "examples" in metrics:
        return metrics["examples"]
    action, anonymizer = metrics.get("examples.action", 0), metrics.get("examples.anonymizer", 0)
    return action if name.endswith(".action") else max(action, anonymizer)
