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
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from spact_models.exchange import difference
from spact_models.gate import FIGURES
from spact_models.quantize import NotRepresentable, narrowed

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
    *FIGURES,  # of a judgement at a release
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
class Packed:
    """An update that may leave and has not left yet."""

    arrays: dict[str, np.ndarray]  # as on the wire
    scales: dict[str, float]  # int8: a value is its steps times this; empty otherwise
    residual: dict[str, Tensor]  # int8: what rounding left out, for the site's own state; empty otherwise


@dataclass(frozen=True)
class Door:
    """The way out for one site and one federation.

    Args:
        site: the site's name, for the ledger.
        ledger: append-only JSON lines, one an update that left.
        allowed: wire names of the parameters that may leave; anything else is refused by name.
        dtype: of the differences on the wire, ``float32``, ``float16`` or ``int8``.
    """

    site: str
    ledger: Path
    allowed: frozenset[str]
    dtype: str = "float32"

    def pack(self, after: Mapping[str, Tensor], before: Mapping[str, Tensor], residual: Mapping[str, Tensor]) -> Packed:
        """The differences ``after - before``, in the wire's type. Nothing leaves yet.

        Args:
            residual: of the site's state before this round; what int8 has left out so far.

        Raises:
            Refused: a name off the list, or a difference that is not finite or does not fit into the type.
        """
        refused = sorted(set(after) - self.allowed)
        if refused:
            raise Refused(f"not on the list of what may leave site {self.site!r}: {', '.join(refused)}")
        try:
            narrow = narrowed(difference(after, before), self.dtype, residual)
        except NotRepresentable as error:
            raise Refused(f"{error}. This round of site {self.site!r} is not sent") from None
        arrays = {name: value.contiguous().numpy() for name, value in narrow.values.items()}
        return Packed(arrays, narrow.scales, narrow.residual)

    def update(self, packed: Packed, server_round: int) -> dict[str, ArrayRecord | MetricRecord]:
        """The message's records ``update`` and, of int8, ``scales``; entered in the ledger before they are handed over.

        Raises:
            Refused: a name off the list.
        """
        refused = sorted((set(packed.arrays) | set(packed.scales)) - self.allowed)
        if refused:
            raise Refused(f"not on the list of what may leave site {self.site!r}: {', '.join(refused)}")
        self._enter(packed, server_round)
        records: dict[str, ArrayRecord | MetricRecord] = {
            "update": ArrayRecord({name: Array(array) for name, array in packed.arrays.items()})
        }
        if packed.scales:
            records["scales"] = MetricRecord(dict(packed.scales))
        return records

    def metrics(self, figures: Mapping[str, float]) -> MetricRecord:
        """Figures on their way out; each must be on the list, and finite (one that is not is left out)."""
        refused = sorted(set(figures) - set(METRICS))
        if refused:
            raise Refused(f"not on the list of figures that site {self.site!r} tells: {', '.join(refused)}")
        return MetricRecord({name: value for name, value in figures.items() if math.isfinite(value)})

    def judgement(self, figures: Mapping[str, float], model_sha256: str) -> RecordDict:
        """A judgement on its way out, entered in the ledger first: listed figures, and which file they are about."""
        told = self.metrics(figures)
        self._write({"kind": "release", "model_sha256": model_sha256, "figures": dict(told), "epsilon": None})
        about = ConfigRecord({"name": self.site, "model_sha256": model_sha256})
        return RecordDict({"metrics": told, "site": about})

    def _enter(self, packed: Packed, server_round: int) -> None:
        arrays = packed.arrays
        entry = {
            "round": server_round,
            "bytes": sum(array.nbytes for array in arrays.values()),
            "sha256": digest(arrays.values()),
            "epsilon": None,
            "arrays": {name: [str(array.dtype), *array.shape] for name, array in arrays.items()},
            **({"scales": packed.scales} if packed.scales else {}),
        }
        self._write(entry)

    @property
    def destination(self) -> str:
        """Whom it went to: the server of this federation, by the id that names the site's folder for it."""
        return self.ledger.parent.name

    def _write(self, entry: Mapping[str, object]) -> None:
        self.ledger.parent.mkdir(parents=True, exist_ok=True)
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "destination": self.destination, **entry}
        with self.ledger.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def digest(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 over the bytes of the arrays in the order of their names' list: what the ledger remembers of them."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
