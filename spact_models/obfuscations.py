"""Obfuscations: untrained transforms called like f_A, the rows every anonymizer has to beat.

All look at sizes relative to the frame, so that a name means the same at 48 px and at 720p. The differences need the
previous frame (history 1), the others look at one frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from spact_models.anonymizer import ClipTransform, grey, grey_difference, onebit_difference, per_frame
from spact_models.errors import UserError

REFERENCE_PX = 112  # the paper's working size, at which the blur kernels below are meant


class Raw(ClipTransform):
    """The clip as it is: the upper bound of utility and of leakage."""

    def transform(self, clip_BCTHW: Tensor) -> Tensor:
        return clip_BCTHW


class Greyscale(ClipTransform):
    """Luma in all three channels: colour of clothes and skin is gone, everything else stays."""

    def transform(self, clip_BCTHW: Tensor) -> Tensor:
        return grey(clip_BCTHW).expand(-1, 3, -1, -1, -1)


class Downsample(ClipTransform):
    """Resolution divided by `factor` (area mean) and brought back smoothly."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def transform(self, clip_BCTHW: Tensor) -> Tensor:
        return per_frame(self._frames, clip_BCTHW)

    def _frames(self, frames_NCHW: Tensor) -> Tensor:
        height, width = frames_NCHW.shape[-2:]
        small_size = (max(1, height // self.factor), max(1, width // self.factor))
        small = functional.interpolate(frames_NCHW, size=small_size, mode="area")
        return functional.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)


class Blur(ClipTransform):
    """Gaussian blur with a kernel and σ given in pixels at 112 px and scaled with the shorter side of the frame."""

    def __init__(self, kernel_px: int, sigma_px: float) -> None:
        super().__init__()
        self.kernel_px, self.sigma_px = kernel_px, sigma_px

    def transform(self, clip_BCTHW: Tensor) -> Tensor:
        return per_frame(self._frames, clip_BCTHW)

    def _frames(self, frames_NCHW: Tensor) -> Tensor:
        scale = min(frames_NCHW.shape[-2:]) / REFERENCE_PX
        reach = max(1, round(self.kernel_px * scale / 2 - 0.5))  # kernel = 2 × reach + 1, so at least 3
        offsets = torch.arange(-reach, reach + 1, dtype=frames_NCHW.dtype, device=frames_NCHW.device)
        weights = torch.exp(-0.5 * (offsets / max(self.sigma_px * scale, 0.5)) ** 2)
        weights = (weights / weights.sum()).expand(3, 1, 1, -1)
        padded = functional.pad(frames_NCHW, (reach, reach, reach, reach), mode="replicate")
        rows = functional.conv2d(padded, weights, groups=3)
        return functional.conv2d(rows, weights.transpose(2, 3), groups=3)


class Pixelate(ClipTransform):
    """A mosaic of `blocks` even squares along the shorter side, each of its mean colour."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks

    def transform(self, clip_BCTHW: Tensor) -> Tensor:
        return per_frame(self._frames, clip_BCTHW)

    def _frames(self, frames_NCHW: Tensor) -> Tensor:
        height, width = frames_NCHW.shape[-2:]
        side_px = max(1, min(height, width) / self.blocks)
        mosaic_size = (max(1, math.ceil(height / side_px)), max(1, math.ceil(width / side_px)))
        mosaic = functional.interpolate(frames_NCHW, size=mosaic_size, mode="area")
        return functional.interpolate(mosaic, size=(height, width), mode="nearest")


class GreyDifference(ClipTransform):
    """|grey - previous grey| × 3: what moved, faintly textured by what it moved across."""

    history = 1

    def transform(self, clip_BCTHW: Tensor) -> Tensor:
        return grey_difference(clip_BCTHW).expand(-1, 3, -1, -1, -1)


class OneBitDifference(ClipTransform):
    """White where the largest channel difference exceeds `threshold`, black elsewhere."""

    history = 1

    def __init__(self, threshold: float = 0.15) -> None:  # the published baseline's
        super().__init__()
        self.threshold = threshold

    def transform(self, clip_BCTHW: Tensor) -> Tensor:
        return onebit_difference(clip_BCTHW, self.threshold).expand(-1, 3, -1, -1, -1)


class BlurDifferenceQuantize(ClipTransform):
    """Blur, difference of consecutive frames, few levels: the fixed form of BDQ.

    After Kumawat and Nagahara, "Privacy-Preserving Action Recognition via Motion Difference Quantization" (ECCV 2022).
    Theirs learns σ and the levels against an adversary, beginning with a 5 × 5 kernel, σ = 1 and 15 steps over the
    clip's own range; ours stays at such a beginning, with a range that is fixed, because a stream has no maximum.
    Differences are signed and by colour: mid-grey = no change, ±`reach` = black and white, beyond it cut.
    """

    history = 1

    def __init__(self, kernel_px: int = 5, sigma_px: float = 1.0, reach: float = 0.5, levels: int = 15) -> None:
        super().__init__()
        if levels < 3 or levels % 2 == 0:
            raise ValueError(f"levels = {levels}, must be odd and at least 3: no change has a level of its own")
        self.blur = Blur(kernel_px, sigma_px)
        self.reach, self.levels = reach, levels

    def transform(self, clip_BCTHW: Tensor) -> Tensor:
        soft = self.blur.transform(clip_BCTHW)
        change = ((soft[:, :, 1:] - soft[:, :, :-1]) / self.reach).clamp(-1.0, 1.0)
        steps = (self.levels - 1) // 2  # on either side of no change
        return 0.5 + 0.5 * torch.round(change * steps) / steps


OBFUSCATIONS: dict[str, Callable[[], ClipTransform]] = {
    "raw": Raw,
    "greyscale": Greyscale,
    "downsample2x": lambda: Downsample(2),
    "downsample4x": lambda: Downsample(4),
    "blur_weak": lambda: Blur(kernel_px=13, sigma_px=10.0),  # faces go, bodies stay
    "blur_strong": lambda: Blur(kernel_px=21, sigma_px=10.0),  # bodies blend with what is behind them
    "pixelate": lambda: Pixelate(blocks=12),
    "difference_grey": GreyDifference,
    "difference1bit": OneBitDifference,
    "bdq": BlurDifferenceQuantize,
}


def by_name(name: str) -> ClipTransform:
    """The obfuscation of that name; UserError naming the known ones otherwise."""
    if name not in OBFUSCATIONS:
        raise UserError(f'obfuscation = "{name}", is not known; take one of {", ".join(OBFUSCATIONS)}')
    return OBFUSCATIONS[name]()
