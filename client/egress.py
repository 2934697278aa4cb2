"""The one door out of a site: allow-list of names -> difference -> message, and a ledger of everything that left.

Nothing else in ``client/`` puts a tensor or a figure into a message.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from spact_models.exchange import difference
from spact_models.files import writing
from spact_models.gate import FIGURES
from spact_models.quantize import NotRepresentable, narrowed
from spact_models.ring import TAUGHT, Words

METRICS = (  # every figure that a site tells; a name that is not here does not leave
    "examples",
    "examples.anonymizer",
    "examples.action",
    "teacher_held",
    "within_clip",
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

    arrays: Mapping[str, np.ndarray]  # as on the wire
    scales: dict[str, float]  # int8: a value is its steps times this; empty otherwise
    residual: dict[str, Tensor]  # int8: what rounding left out, for the site's own state; empty otherwise


@dataclass(frozen=True)
class Masked:
    """An update of secure aggregation: nobody can read it but in a sum."""

    arrays: Mapping[str, Words]
    taught: Words  # masked, too: how many sites taught each branch, 0 or 1 of each
    residual: Mapping[str, Tensor] = field(default_factory=dict)  # nothing is left out of it


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

    def update(self, leaving: Packed | Masked, server_round: int) -> dict[str, ArrayRecord | MetricRecord]:
        """The message's records ``update`` and, of int8, ``scales`` or, of a masked one, ``taught``.

        Entered in the ledger before they are handed over.

        Raises:
            Refused: a name off the list.
        """
        scales = leaving.scales if isinstance(leaving, Packed) else {}
        refused = sorted((set(leaving.arrays) | set(scales)) - self.allowed)
        if refused:
            raise Refused(f"not on the list of what may leave site {self.site!r}: {', '.join(refused)}")
        self._enter(leaving, server_round)
        records: dict[str, ArrayRecord | MetricRecord] = {
            "update": ArrayRecord({name: Array(array) for name, array in leaving.arrays.items()})
        }
        if isinstance(leaving, Masked):
            records[TAUGHT] = ArrayRecord({TAUGHT: Array(leaving.taught)})
        elif leaving.scales:
            records["scales"] = MetricRecord(dict(leaving.scales))
        return records

    def agreed(self, stage: str, answer: Mapping[str, Any], server_round: int) -> RecordDict:
        """An answer of secure aggregation on its way out: keys, sealed shares, signatures; never an update."""
        record = ConfigRecord(dict(answer))
        content = record.deflate()
        told = {"kind": f"secure.{stage}", "round": server_round, "bytes": len(content)}
        self._write({**told, "sha256": hashlib.sha256(content).hexdigest(), "epsilon": None})
        return RecordDict({"secure": record})

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

    def _enter(self, leaving: Packed | Masked, server_round: int) -> None:
        arrays = leaving.arrays
        entry: dict[str, object] = {
            "round": server_round,
            "bytes": sum(array.nbytes for array in arrays.values()),
            "sha256": digest(arrays.values()),
            "epsilon": None,
            "arrays": {name: [str(array.dtype), *array.shape] for name, array in arrays.items()},
        }
        if isinstance(leaving, Masked):
            entry["masked"] = True
        elif leaving.scales:
            entry["scales"] = leaving.scales
        self._write(entry)

    @property
    def destination(self) -> str:
        """Whom it went to: the server of this federation, by the id that names the site's folder for it."""
        return self.ledger.parent.name

    def _write(self, entry: Mapping[str, object]) -> None:
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "destination": self.destination, **entry}
        with writing(self.ledger, "nothing leaves; free that disk or set `state` in site.yaml"):
            self.ledger.parent.mkdir(parents=True, exist_ok=True)
            with self.ledger.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def digest(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 over the bytes of the arrays in the order of their names' list: what the ledger remembers of them."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
