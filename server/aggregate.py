"""The weighted mean of the sites' updates, taken as they arrive: one accumulator, whatever the number of sites.

An update is checked in full before any of it is added, so a rejected one leaves no trace. The arrays are read in
place from the message's bytes, one at a time: beside the accumulator there is never more than one reply in memory.
Narrow types are widened a stretch at a time into a buffer that stays in the processor's cache.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor

from spact_models.exchange import BRANCHES
from spact_models.quantize import STEPS, dequantized

# A difference this large is a diverged site, and its square must still fit into Adam's float32.
LARGEST_DIFFERENCE = 1e6
WIRE_DTYPES = {"<f4": torch.float32, "<f2": torch.float16, "|i1": torch.int8}
VALUES_AT_ONCE = 1 << 18  # float32 values widened at a time: 1 MiB, which stays in cache while it is added
NO_SCALES: Mapping[str, object] = {}
SHOWN_NAMES = 3
HEADER_BYTES = 4096  # a .npy header of ours has 128
HEADERS_KEPT = 1024  # a model has some hundred different ones, and every site sends the same


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
        self._room = room(self._shapes)
        self._wide = torch.empty(0)
        self.weights: dict[str, int] = dict.fromkeys(BRANCHES, 0)
        self.updates = 0

    def add(
        self,
        arrays: Mapping[str, Array],
        examples: Mapping[str, object],
        scales: Mapping[str, object] = NO_SCALES,
    ) -> None:
        """Check one update, then add it.

        Args:
            arrays: the differences by name.
            examples: branch prefix -> its claimed count; 0 = not sent.
            scales: one for each int8 array, whose values are multiples of it; empty when there is none.

        Raises:
            RejectedUpdate: a value breaks a rule; nothing has been added.
        """
        counts = self._check_counts(examples)
        names = [name for name in self._shapes if name.startswith(tuple(counts))]
        check_names(arrays, names)
        values = {name: read_array(name, arrays[name], self._shapes[name]) for name in names}
        factors = checked_scales([name for name, value in values.items() if value.dtype == torch.int8], scales)
        for name, value in values.items():
            check_values(name, value)
        for prefix, count in counts.items():
            self.weights[prefix] += 1 if self._equal else count
        for name, value in values.items():
            prefix = next(prefix for prefix in counts if name.startswith(prefix))
            share = (1 if self._equal else counts[prefix]) / self.weights[prefix]
            self._move(name, value, factors.get(name, 1.0), share)
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

    def _move(self, name: str, value: Tensor, scale: float, share: float) -> None:
        """One tensor of the mean towards ``scale * value``; a first one is copied, whatever its share."""
        if name not in self._mean:
            self._mean[name] = self._room[name].copy_(value)
            if scale != 1.0:
                self._mean[name].mul_(scale)
        elif value.dtype == torch.float32:
            self._mean[name].lerp_(value, share)
        else:
            self._move_narrow(self._mean[name].view(-1), value.contiguous().view(-1), scale, share)

    def _move_narrow(self, mean: Tensor, value: Tensor, scale: float, share: float) -> None:
        if not self._wide.numel():
            self._wide = torch.empty(VALUES_AT_ONCE)
        for start in range(0, value.numel(), VALUES_AT_ONCE):
            part, narrow = mean[start : start + VALUES_AT_ONCE], value[start : start + VALUES_AT_ONCE]
            wide = self._wide[: part.numel()].copy_(narrow)
            if scale != 1.0:
                wide.mul_(scale)
            part.lerp_(wide, share)


def room(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A float32 tensor a name, in one piece of memory that takes no room before it is written to.

    numpy's allocation, because numpy asks Linux for huge pages: a first write to 200 MB takes less than half as long.
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    parts = torch.from_numpy(np.empty(sum(sizes), np.float32)).split_with_sizes(sizes)
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def check_names(arrays: Mapping[str, Array], expected: list[str]) -> None:
    """Exactly the expected names: a missing one would count as "no change", a further one is somebody's mistake."""
    odd = sorted(set(arrays) - set(expected))
    missing = sorted(set(expected) - set(arrays))
    if odd or missing:
        said = [f"{word} {_some(names)}" for word, names in (("unexpected", odd), ("missing", missing)) if names]
        raise RejectedUpdate(f"names of the update: {', '.join(said)}; must be those of the branches it declares")


def checked_scales(narrow: Sequence[str], scales: Mapping[str, object]) -> dict[str, float]:
    """The scales of an update's int8 arrays, which ``narrow`` names; exactly those have one.

    Raises:
        RejectedUpdate: naming the array, the value and the rule.
    """
    odd, missing = sorted(set(scales) - set(narrow)), sorted(set(narrow) - set(scales))
    if odd or missing:
        said = [f"{word} {_some(names)}" for word, names in (("unexpected", odd), ("missing", missing)) if names]
        raise RejectedUpdate(f"scales of the update: {', '.join(said)}; each int8 array must have one and no other")
    largest = LARGEST_DIFFERENCE / (STEPS + 1)  # int8 goes to -128
    checked = {}
    for name in narrow:
        value = scales[name]
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        if not (math.isfinite(number) and 0 < number <= largest):
            raise RejectedUpdate(f"the scale of {name} is {value!r:.40}, must be above 0 and at most {largest:g}")
        checked[name] = number
    return checked


def widened(arrays: Mapping[str, Array], scales: Mapping[str, object]) -> Mapping[str, Array]:
    """An update with its int8 arrays as float32, for who cannot take scales; nothing is copied where none is int8.

    Raises:
        RejectedUpdate: a scale or an array is not what it must be.
    """
    headers = {name: _read_header(name, array) for name, array in arrays.items()}
    narrow = [name for name, header in headers.items() if header.dtype == torch.int8]
    wide = {
        name: Array(dequantized(read_array(name, arrays[name], headers[name].shape), scale).numpy())
        for name, scale in checked_scales(narrow, scales).items()
    }
    return {**arrays, **wide} if wide else arrays


def check_array(name: str, array: Array, shape: tuple[int, ...]) -> None:
    """Shape, type and values of one array.

    Raises:
        RejectedUpdate: naming the array, the value and the rule.
    """
    check_values(name, read_array(name, array, shape))


def check_values(name: str, value: Tensor) -> None:
    """Finite, and no larger than :data:`LARGEST_DIFFERENCE`.

    Raises:
        RejectedUpdate: naming the array, the value and the rule.
    """
    if not value.numel() or value.dtype == torch.int8:  # every int8 is finite, and its scale is checked
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
        RejectedUpdate: not a plain float32, float16 or int8 array of the expected shape.
    """
    header = _read_header(name, array)
    if header.shape != shape:
        raise RejectedUpdate(f"{name} has shape {header.shape}, must be {shape}")
    count, item = math.prod(shape), header.dtype.itemsize
    if len(array.data) != header.bytes + count * item:
        raise RejectedUpdate(f"{name} has {len(array.data) - header.bytes} bytes, must be {count * item}")
    if not count:
        return torch.zeros(shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        flat = torch.frombuffer(array.data, dtype=header.dtype, count=count, offset=header.bytes)
    if header.fortran:
        return flat.view(shape[::-1]).permute(*range(len(shape) - 1, -1, -1))
    return flat.view(shape)


class _Header(NamedTuple):
    """What the ``.npy`` header says: the values follow after its ``bytes``."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: torch.dtype
    bytes: int


def _read_header(name: str, array: Array) -> _Header:
    if array.stype != "numpy.ndarray":
        raise RejectedUpdate(f"{name} is serialised as {array.stype!r}, must be 'numpy.ndarray'")
    length = 10 + int.from_bytes(array.data[8:10], "little")  # numpy writes format 1 up to 64 KiB of header
    try:
        shape, fortran, dtype, end = parsed_header(array.data[: min(length, HEADER_BYTES)])
    except Exception as error:  # whatever a stranger's bytes make of the parser, the answer is the same
        raise RejectedUpdate(f"{name} is not a numpy array ({error})") from None
    if dtype.str not in WIRE_DTYPES:
        raise RejectedUpdate(f"{name} is of type {dtype}, must be float32, float16 or int8")
    return _Header(shape, fortran, WIRE_DTYPES[dtype.str], end)


@lru_cache(maxsize=HEADERS_KEPT)
def parsed_header(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    """Shape, Fortran order, type and length of a ``.npy`` header (never unpickled)."""
    stream = io.BytesIO(start)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"format {version}, must be (1, 0)")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    return tuple(shape), bool(fortran), dtype, stream.tell()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
