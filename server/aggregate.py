"""The weighted mean of the sites' updates, taken as they arrive: one accumulator, whatever the number of sites.

An update is checked in full before any of it is added, so a rejected one leaves no trace. The arrays are read in
place from the message's bytes, one at a time: beside the accumulator there is never more than one reply in memory.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor

from spact_models.exchange import BRANCHES

# A difference this large is a diverged site, and its square must still fit into Adam's float32.
LARGEST_DIFFERENCE = 1e6
WIRE_DTYPES = {"<f4": torch.float32, "<f2": torch.float16}
SHOWN_NAMES = 3


class RejectedUpdate(Exception):
    """One site's update that cannot be used; the message names the value and the rule it breaks."""


def claimed_examples(metrics: Mapping[str, object]) -> dict[str, object]:
    """What a reply's metrics claim for each branch prefix (``examples.anonymizer``, ...); absent is 0: not sent."""
    return {prefix: metrics.get(f"examples.{prefix[:-1]}", 0) for prefix in BRANCHES}


def checked_count(name: str, value: object, largest: int) -> int:
    """``value`` as a count from 0 to ``largest``.

    Raises:
        RejectedUpdate: it is not a whole number, or outside that range.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise RejectedUpdate(f"{name} = {value!r}, must be a whole number from 0 to {largest}")
    return value


class StreamingMean:
    """Weighted mean of named differences, branch by branch (f_A and f_T have weights of their own).

    The mean moves towards each arrival by the arrival's share of the weight so far. One update, or equal ones, come
    out exactly as they went in. Any order of n updates gives the same mean up to ``4 n 2^-24 max|x|`` a coordinate
    (x over the updates), because each step rounds once or twice in float32.

    Args:
        shapes: every name that may come, with its shape.
        max_examples: a larger claim is not believed.
        weighting: ``"examples"``: a site weighs what it claims; ``"equal"``: every site weighs 1.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], max_examples: int, weighting: str = "examples") -> None:
        self._shapes = dict(shapes)
        self._max_examples = max_examples
        self._equal = weighting == "equal"
        self._mean: dict[str, Tensor] = {}
        self.weights: dict[str, int] = dict.fromkeys(BRANCHES, 0)
        self.updates = 0

    def add(self, arrays: Mapping[str, Array], examples: Mapping[str, object]) -> None:
        """Check one update, then add it. ``examples`` maps a branch prefix to its claimed count; 0 = not sent.

        Raises:
            RejectedUpdate: a value breaks a rule; nothing has been added.
        """
        counts = self._check_counts(examples)
        names = [name for name in self._shapes if name.startswith(tuple(counts))]
        check_names(arrays, names)
        for name in names:
            check_array(name, arrays[name], self._shapes[name])
        for prefix, count in counts.items():
            self.weights[prefix] += 1 if self._equal else count
        for name in names:
            prefix = next(prefix for prefix in counts if name.startswith(prefix))
            share = (1 if self._equal else counts[prefix]) / self.weights[prefix]
            self._move(name, read_array(name, arrays[name], self._shapes[name]), share)
        self.updates += 1

    def mean(self) -> dict[str, Tensor]:
        """The mean by name, float32, of the branches that somebody sent. The tensors are the accumulator itself."""
        return dict(self._mean)

    def _check_counts(self, examples: Mapping[str, object]) -> dict[str, int]:
        unknown = sorted(set(examples) - set(BRANCHES))
        if unknown:
            raise RejectedUpdate(f"examples for {unknown[0]!r}, known branches are {', '.join(BRANCHES)}")
        counts = {
            prefix: checked_count(f"examples.{prefix[:-1]}", value, self._max_examples)
            for prefix, value in examples.items()
        }
        sent = {prefix: count for prefix, count in counts.items() if count > 0}
        if not sent:
            raise RejectedUpdate("no branch has examples, must be at least 1 for one of them")
        return sent

    def _move(self, name: str, value: Tensor, share: float) -> None:
        if name in self._mean:
            self._mean[name].lerp_(value.to(torch.float32), share)
        else:
            self._mean[name] = value.to(torch.float32, copy=True)


def check_names(arrays: Mapping[str, Array], expected: list[str]) -> None:
    """Exactly the expected names: a missing one would count as "no change", a further one is somebody's mistake."""
    odd = sorted(set(arrays) - set(expected))
    missing = sorted(set(expected) - set(arrays))
    if odd or missing:
        said = [f"{word} {_some(names)}" for word, names in (("unexpected", odd), ("missing", missing)) if names]
        raise RejectedUpdate(f"names of the update: {', '.join(said)}; must be those of the branches it declares")


def check_array(name: str, array: Array, shape: tuple[int, ...]) -> None:
    """Shape, type and values of one array.

    Raises:
        RejectedUpdate: naming the array, the value and the rule.
    """
    value = read_array(name, array, shape)
    if not value.numel():
        return
    low, high = (float(bound) for bound in torch.aminmax(value))  # NaN anywhere makes both NaN
    if not (math.isfinite(low) and math.isfinite(high)):
        raise RejectedUpdate(f"{name} holds {low if not math.isfinite(low) else high}, must be finite")
    if max(-low, high) > LARGEST_DIFFERENCE:
        raise RejectedUpdate(f"{name} holds {max(-low, high):g}, must be at most {LARGEST_DIFFERENCE:g} in size")


def read_array(name: str, array: Array, shape: tuple[int, ...]) -> Tensor:
    """A tensor on the message's own bytes: nothing is copied, and it must not be written to.

    The bytes' own header counts, not what the message says about them.

    Raises:
        RejectedUpdate: not a plain float32 or float16 array of the expected shape.
    """
    if array.stype != "numpy.ndarray":
        raise RejectedUpdate(f"{name} is serialised as {array.stype!r}, must be 'numpy.ndarray'")
    found, fortran, dtype, offset = _read_header(name, array.data)
    if dtype.str not in WIRE_DTYPES:
        raise RejectedUpdate(f"{name} is of type {dtype}, must be float32 or float16")
    if found != shape:
        raise RejectedUpdate(f"{name} has shape {found}, must be {shape}")
    count = math.prod(shape)
    if len(array.data) != offset + count * dtype.itemsize:
        raise RejectedUpdate(f"{name} has {len(array.data) - offset} bytes, must be {count * dtype.itemsize}")
    if not count:
        return torch.zeros(shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        flat = torch.frombuffer(array.data, dtype=WIRE_DTYPES[dtype.str], count=count, offset=offset)
    if fortran:
        return flat.view(shape[::-1]).permute(*range(len(shape) - 1, -1, -1))
    return flat.view(shape)


def _read_header(name: str, data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    """Shape, Fortran order, type and offset of the values, from the ``.npy`` header (never unpickled)."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception as error:  # whatever a stranger's bytes make of the parser, the answer is the same
        raise RejectedUpdate(f"{name} is not a numpy array ({error})") from None
    return tuple(shape), bool(fortran), dtype, stream.tell()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
