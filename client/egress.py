"""The one door out of a site: allow-list of names -> difference -> message, and a ledger of everything that left.

Nothing else in ``client/`` puts a tensor or a figure into a message.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from torch import Tensor

from spact_models.exchange import difference

METRICS = (  # every figure that a site tells; a name that is not here does not leave
    "examples",
    "examples.anonymizer",
    "examples.action",
    "teacher_held",
    "loss.action",
    "loss.privacy",
    "chance.privacy",
    "top1",
    "seconds",
    "peak_rss_mb",
    "unreadable",
)


class Refused(Exception):
    """Something tried to leave that is not on the list."""


def introduction(name: str, classes: Sequence[str], train_rows: int, test_rows: int) -> ConfigRecord:
    """What a site says of itself before round 1: its name, its action names, how many videos it counts on."""
    return ConfigRecord({"name": name, "classes": list(classes), "train_rows": train_rows, "test_rows": test_rows})


def signature(name: str) -> ConfigRecord:
    """Whose reply it is."""
    return ConfigRecord({"name": name})


@dataclass(frozen=True)
class Door:
    """The way out for one site and one federation.

    Args:
        site: the site's name, for the ledger.
        ledger: append-only JSON lines, one an update that left.
        allowed: wire names of the parameters that may leave; anything else is refused by name.
        dtype: of the differences on the wire, ``float32`` or ``float16``.
    """

    site: str
    ledger: Path
    allowed: frozenset[str]
    dtype: str = "float32"

    def update(self, after: Mapping[str, Tensor], before: Mapping[str, Tensor], server_round: int) -> ArrayRecord:
        """The differences ``after - before``, entered in the ledger before they are handed over.

        Raises:
            Refused: a name off the list, or a difference that is not finite.
        """
        refused = sorted(set(after) - self.allowed)
        if refused:
            raise Refused(f"not on the list of what may leave site {self.site!r}: {', '.join(refused)}")
        arrays = {name: self._narrow(name, value) for name, value in difference(after, before).items()}
        self._enter(arrays, server_round)
        return ArrayRecord({name: Array(array) for name, array in arrays.items()})

    def metrics(self, figures: Mapping[str, float]) -> MetricRecord:
        """Figures on their way out; each must be on the list, and finite (one that is not is left out)."""
        refused = sorted(set(figures) - set(METRICS))
        if refused:
            raise Refused(f"not on the list of figures that site {self.site!r} tells: {', '.join(refused)}")
        return MetricRecord({name: value for name, value in figures.items() if math.isfinite(value)})

    def _narrow(self, name: str, value: Tensor) -> np.ndarray:
        narrow = value.to(torch.float16 if self.dtype == "float16" else torch.float32)
        if not bool(torch.isfinite(narrow).all()):
            raise Refused(f"{name}: the difference holds NaN or infinity; this round of site {self.site!r} is not sent")
        array: np.ndarray = narrow.contiguous().numpy()
        return array

    def _enter(self, arrays: Mapping[str, np.ndarray], server_round: int) -> None:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "round": server_round,
            "bytes": sum(array.nbytes for array in arrays.values()),
            "sha256": digest(arrays.values()),
            "epsilon": None,
            "arrays": {name: [str(array.dtype), *array.shape] for name, array in arrays.items()},
        }
        self.ledger.parent.mkdir(parents=True, exist_ok=True)
        with self.ledger.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def digest(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 over the bytes of the arrays in the order of their names' list: what the ledger remembers of them."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
