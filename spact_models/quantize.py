"""Differences in few bits: float16, or int8 with one scale for each tensor and error feedback.

int8 rounds to the nearest of 255 even steps from ``-max|x|`` to ``max|x|`` of its tensor. What rounding leaves out is
not lost: the site adds it to its next difference (error feedback; Seide et al. 2014, Karimireddy et al. 2019), so over
the rounds the server gets the sum of the differences up to one step. Rounding to the nearest and not at random: with
error feedback its bias does not add up, its error is half as large, and a round that is played again gives the same
bytes without a random state to keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

STEPS = 127  # int8 from -127 to 127: symmetric, so that 0 stays 0 and a sign costs nothing
LARGEST_FLOAT16 = 65504.0
SMALLEST_SCALE = 2.0**-126  # the smallest normal float32: below it a step has no full precision


class NotRepresentable(ValueError):
    """A value does not fit into the wire's type; the message names the value, the limit and the remedy."""


@dataclass(frozen=True)
class Narrowed:
    """Differences as they cross the wire: by name their values, and for int8 their scales and what was left out."""

    values: dict[str, Tensor]
    scales: dict[str, float] = field(default_factory=dict)
    residual: dict[str, Tensor] = field(default_factory=dict)


def narrowed(difference: Mapping[str, Tensor], dtype: str, residual: Mapping[str, Tensor]) -> Narrowed:
    """The differences in the wire's type.

    Args:
        difference: float32 by name.
        dtype: ``float32``, ``float16`` or ``int8``.
        residual: what int8 left out in the rounds before; a name that is not there counts as 0. Not read otherwise.

    Raises:
        NotRepresentable: a value is NaN or infinite, or larger than float16 holds.
    """
    for name, value in difference.items():
        if not bool(torch.isfinite(value).all()):
            raise NotRepresentable(f"{name}: the difference holds NaN or infinity")
    if dtype == "float32":
        return Narrowed({name: value.to(torch.float32) for name, value in difference.items()})
    if dtype == "float16":
        return Narrowed({name: _half(name, value) for name, value in difference.items()})
    out = Narrowed({})
    for name, value in difference.items():
        wanted = value.float() + residual[name] if name in residual else value.float()
        out.values[name], out.scales[name] = quantized(wanted)
        out.residual[name] = wanted - dequantized(out.values[name], out.scales[name])
    return out


def quantized(value: Tensor) -> tuple[Tensor, float]:
    """int8 values and the scale, a float32 number above 0, that they are multiples of; |error| <= scale / 2.

    A tensor of zeros has scale 1. Where the largest value is below 1e-36 all becomes 0.
    """
    largest = float(value.abs().max()) if value.numel() else 0.0
    scale = float(torch.tensor(largest / STEPS, dtype=torch.float32))
    if scale < SMALLEST_SCALE:
        return torch.zeros(value.shape, dtype=torch.int8), 1.0
    return (value / scale).round_().clamp_(-STEPS, STEPS).to(torch.int8), scale


def dequantized(steps: Tensor, scale: float) -> Tensor:
    """float32 from int8: ``steps * scale``."""
    return steps.to(torch.float32) * scale


def _half(name: str, value: Tensor) -> Tensor:
    half = value.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise NotRepresentable(
            f"{name}: the difference holds {float(value.abs().max()):g}, float16 ends at {LARGEST_FLOAT16:g}; "
            "set wire.dtype = 'float32', or look at why this site's weights move so far"
        )
    return half
