"""Normalisation by name, one factory for every network.

`group` is the federated default: it keeps no running statistics, so nothing is shared, averaged or noised but
weights. `batch` is for faithful centralised reproduction (and for torchvision's weights as they were trained).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from spact_models.constants import constant
from spact_models.errors import UserError

Norm = Literal["group", "batch"]
MAX_GROUPS = 32  # GroupNorm's paper
MIN_CHANNELS_PER_GROUP = 4  # one channel a group would erase each channel's mean, the brightness of a picture with it


def check_norm(norm: str) -> None:
    """UserError unless `norm` is a known name."""
    if norm not in get_args(Norm):
        raise UserError(f'norm = "{norm}", must be "group" (federated default) or "batch" (centralised reproduction)')


def group_count(channels: int) -> int:
    """The most groups that divide `channels`, at most 32 and with at least 4 channels each (1 if none does)."""
    most = max(1, min(MAX_GROUPS, channels // MIN_CHANNELS_PER_GROUP))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def make_norm(norm: Norm, channels: int, dimensions: Literal[2, 3]) -> nn.Module:
    """A normalisation layer for N×channels×… pictures (2 dimensions) or clips (3)."""
    check_norm(norm)
    if norm == "group":
        return nn.GroupNorm(group_count(channels), channels)
    return nn.BatchNorm2d(channels) if dimensions == 2 else nn.BatchNorm3d(channels)


class InputNorm(nn.Module):
    """Brings RGB in [0, 1] to the mean and spread a trunk was trained with. Holds no state that travels or is saved."""

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def extra_repr(self) -> str:
        return f"mean={self.mean}, std={self.std}"

    def forward(self, pictures_NC: Tensor) -> Tensor:
        """N×3×… in [0, 1] -> the same shape, standardised."""
        shape = (1, 3) + (1,) * (pictures_NC.dim() - 2)
        mean, std = (self._like(pictures_NC, numbers).view(shape) for numbers in (self.mean, self.std))
        return (pictures_NC - mean) / std

    @staticmethod
    def _like(pictures_NC: Tensor, numbers: tuple[float, float, float]) -> Tensor:
        if torch.compiler.is_compiling():  # makes them once itself, and does not follow a cache
            return pictures_NC.new_tensor(numbers)
        return constant(numbers, pictures_NC.dtype, pictures_NC.device)
