"""How much an anonymised video flickers where its input stands still. Constant memory, one pass."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from client.video.decode import Frames

STILL = 6  # of 255: a pixel whose every colour changed by no more has not moved; above the grain of ordinary codecs


@dataclass
class Flicker:
    """Mean absolute difference of neighbouring frames over the pixels that stood still in the input, in 0…1.

    Pairs with a black frame on either side are left out: going black is no flicker. ``input_level`` is the same measure
    of the input on the same pixels: the floor that grain and compression leave.
    """

    pairs: int = 0
    _still: int = 0
    _all: int = 0
    _seen: float = 0.0
    _raw: float = 0.0
    _before: tuple[Frames, Frames] | None = field(default=None, repr=False)

    def add(self, raw_HWC: Frames, seen_HWC: Frames) -> None:
        """The next frame of the stream and what became of it, both ``uint8 (S, S, 3)``."""
        if self._before is not None:
            raw_change = _change(raw_HWC, self._before[0])
            still = raw_change.max(axis=2) <= STILL
            self.pairs += 1
            self._still += int(still.sum())
            self._all += still.size
            self._raw += float(raw_change[still].sum()) / (3 * 255)
            self._seen += float(_change(seen_HWC, self._before[1])[still].sum()) / (3 * 255)
        self._before = (raw_HWC, seen_HWC)

    def interrupt(self) -> None:
        """A black frame: its neighbours are not compared across it."""
        self._before = None

    @property
    def level(self) -> float | None:
        """None: nothing stood still, or there were no two neighbours."""
        return self._seen / self._still if self._still else None

    @property
    def input_level(self) -> float | None:
        return self._raw / self._still if self._still else None

    @property
    def still_share(self) -> float | None:
        return self._still / self._all if self._all else None


def _change(one_HWC: Frames, other_HWC: Frames) -> NDArray[np.int16]:
    change: NDArray[np.int16] = np.abs(one_HWC.astype(np.int16) - other_HWC)
    return change
