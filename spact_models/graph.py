"""f_A as a graph that others run: nothing in it is drawn, and weights may be kept in 8 bits."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from spact_models.anonymizer import Anonymizer

LEAST_NOISE_SD = 0.05  # of one frame's noise, which has 1: below it nobody drew it


def noise_planes(anonymizer: Anonymizer) -> tuple[int, int]:
    """(planes, side of the square that one value covers)."""
    cell = anonymizer.config.output_cell_px
    return (1, cell) if cell else (3, 1)


def unit_px(anonymizer: Anonymizer) -> int:
    """Heights and widths of a graph are multiples of this: every level of the U-Net halves them evenly."""
    config = anonymizer.config
    return math.lcm(config.patch_px * 2**config.depth, config.output_cell_px or 1)


class Graph(nn.Module):
    """f_A as exported: noise comes in from outside, and a frame whose noise is constant is black."""

    def __init__(self, anonymizer: Anonymizer) -> None:
        super().__init__()
        self.anonymizer = anonymizer

    def forward(self, clip: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            return self.anonymizer.transform(clip)
        mean = noise.mean(dim=(1, 3, 4), keepdim=True)
        variance_B1T11 = (noise - mean).square().mean(dim=(1, 3, 4), keepdim=True)
        out_BCTHW = self.anonymizer.with_noise(clip, noise)
        return torch.where(variance_B1T11 > LEAST_NOISE_SD**2, out_BCTHW, torch.zeros_like(out_BCTHW))


class RoundedConvolution(nn.Module):
    """A convolution that keeps its weights as 8-bit whole numbers, one scale an output channel."""

    weight_int8: Tensor
    scale_O111: Tensor

    def __init__(self, original: nn.Conv2d) -> None:
        super().__init__()
        weight = original.weight.detach()
        scale = (weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127).clamp(min=1e-12)
        self.register_buffer("weight_int8", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale_O111", scale)
        self.bias, self.padding = original.bias, original.padding

    def forward(self, pictures_NCHW: Tensor) -> Tensor:
        weight = self.weight_int8.to(pictures_NCHW.dtype) * self.scale_O111
        return functional.conv2d(pictures_NCHW, weight, self.bias, padding=self.padding)


def rounded(anonymizer: Anonymizer) -> Anonymizer:
    """A copy of f_A whose convolutions keep 8-bit weights."""
    copied = copy.deepcopy(anonymizer)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(parent, name, RoundedConvolution(child))
    return copied
