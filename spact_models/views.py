"""Clips and views as the game sees them: batches, whole-clip augmentation, the two views of NT-Xent.

A *clip* is a run of frames, a *view* one frame or a few (behind the lead-in frames a motion anonymizer consumes).
A batch carries action clips and view pairs; the two are independent and may come from different videos (paper, 3.2).
Randomness comes from a `torch.Generator` on the CPU alone, so that a CPU run and a CUDA run draw the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, cached_property, partial

import torch
from torch import Tensor
from torch.nn import functional

from spact_models.constants import constant
from spact_models.errors import UserError
from spact_models.game_settings import AugmentSettings

MadeLater = Callable[[], Tensor]


@dataclass(frozen=True)
class FrameBatch:
    """What the loader hands over: uint8 RGB frames as read, nothing augmented.

    T of the clips is lead-in + clip frames; T of the views is lead-in + view frames. B and N are
    independent of each other.
    `labels_B` is int64 with -1 for an unlabelled clip.
    """

    clips_BTHWC: Tensor
    labels_B: Tensor
    first_NTHWC: Tensor
    second_NTHWC: Tensor


class Batch:
    """What the game plays with: float frames in [0, 1], augmented, channels before time.

    `first_NCTHW[n]` and `second_NCTHW[n]` are two views of video n; T as in FrameBatch. A view that is given as how
    it is made is made when it is first looked at: with `game.omega` = 0 most moves look at none.
    """

    def __init__(
        self,
        clips_BCTHW: Tensor,
        labels_B: Tensor,
        first: Tensor | MadeLater,
        second: Tensor | MadeLater,
        host_labels_B: Tensor | None = None,
    ) -> None:
        """``host_labels_B``: the labels on the CPU as well, so that nobody waits for a GPU to know what is labelled."""
        self.clips_BCTHW, self.labels_B = clips_BCTHW, labels_B
        self._views = first, second
        self._known_B = (labels_B if host_labels_B is None else host_labels_B) >= 0

    @cached_property
    def labelled(self) -> bool:
        """Whether any clip has a label."""
        return bool(self._known_B.any())

    @cached_property
    def unlabelled(self) -> bool:
        """Whether any clip has none."""
        return not bool(self._known_B.all())

    @cached_property
    def first_NCTHW(self) -> Tensor:
        return _made(self._views[0])

    @cached_property
    def second_NCTHW(self) -> Tensor:
        return _made(self._views[1])


def _made(view: Tensor | MadeLater) -> Tensor:
    return view if isinstance(view, Tensor) else view()


def to_float_BCTHW(frames_BTHWC: Tensor) -> Tensor:
    """uint8 frames (B,T,H,W,3) in 0…255 -> float32 (B,3,T,H,W) in [0, 1]. Works on either device."""
    if frames_BTHWC.dtype != torch.uint8:
        raise TypeError(f"frames are {frames_BTHWC.dtype}, expected uint8 as the loader gives them")
    return frames_BTHWC.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format) / 255.0


@dataclass(frozen=True)
class AugmentConfig:
    """How strongly clips and views are varied. Every strength at 0 (and crop_min_share = 1) leaves a clip as it is.

    The ranges are the reference's; it applies each colour change to a random part of the clips only, we to all.
    """

    crop_min_share: float = 0.6  # a crop keeps this to all of each side; smaller loses the actor
    flip_probability: float = 0.5
    brightness: float = 0.1  # ± share
    contrast: float = 0.1
    saturation: float = 0.1
    hue: float = 0.05  # ± share of the colour circle
    gamma: float = 0.15  # exponent 1 ± share
    grey_probability: float = 0.1
    erase_probability: float = 1.0
    erase_min_share: float = 0.08  # sides of the erased box: the reference's 9 to 19 of 112 px
    erase_max_share: float = 0.17

    def __post_init__(self) -> None:
        if not 0.0 < self.crop_min_share <= 1.0:
            raise UserError(
                f"augment.crop_min_share = {self.crop_min_share}, must be above 0 and at most 1 (1 = no crop)"
            )
        for name in ("flip_probability", "grey_probability", "erase_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"augment.{name} = {getattr(self, name)}, must be within 0 and 1 (0 = never)")
        for name in ("brightness", "contrast", "saturation", "gamma"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"augment.{name} = {getattr(self, name)}, must be at least 0 and below 1 (0 = off)")
        if not 0.0 <= self.hue <= 0.5:
            raise UserError(f"augment.hue = {self.hue}, must be within 0 and 0.5 (half the colour circle; 0 = off)")
        if not 0.0 <= self.erase_min_share <= self.erase_max_share <= 1.0:
            raise UserError(
                f"augment.erase_min_share = {self.erase_min_share} and erase_max_share = {self.erase_max_share}, "
                "must be 0 <= erase_min_share <= erase_max_share <= 1 (erase_probability = 0 erases nothing)"
            )

    @property
    def recolours(self) -> bool:
        """Whether any colour can change."""
        strengths = (self.brightness, self.contrast, self.saturation, self.hue, self.gamma, self.grey_probability)
        return any(strength > 0 for strength in strengths)


NO_AUGMENTATION = AugmentConfig(
    crop_min_share=1.0,
    flip_probability=0.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    hue=0.0,
    gamma=0.0,
    grey_probability=0.0,
    erase_probability=0.0,
)


def augmentation(chosen: AugmentSettings) -> AugmentConfig:
    """What training varies, by a run's settings."""
    return AugmentConfig(crop_min_share=chosen.crop_min_share) if chosen.enabled else NO_AUGMENTATION


@dataclass(frozen=True)
class Draw:
    """One draw per clip, every field (B,): what happens to all frames of clip b alike."""

    crop_share: Tensor  # of each side
    crop_left: Tensor  # 0 = at the left edge, 1 = at the right edge
    crop_top: Tensor
    flip: Tensor  # bool
    brightness: Tensor  # factors around 1
    contrast: Tensor
    saturation: Tensor
    hue: Tensor  # shares of the colour circle
    gamma: Tensor
    grey: Tensor  # bool
    erase: Tensor  # bool
    erase_height: Tensor  # shares of the frame
    erase_width: Tensor
    erase_top: Tensor  # 0 = at the top, 1 = at the bottom
    erase_left: Tensor

    def to(self, device: torch.device) -> Draw:
        """The same draw on the device; to a GPU in one piece of pinned memory, so that nobody waits for it."""
        values: list[Tensor] = [getattr(self, field.name) for field in fields(self)]
        if device.type != "cuda":
            return Draw(*(value.to(device) for value in values))
        rows = torch.stack([value.float() for value in values]).pin_memory().to(device, non_blocking=True)
        return Draw(*(row > 0 if value.dtype == torch.bool else row for value, row in zip(values, rows, strict=True)))


def draw(clips: int, config: AugmentConfig, generator: torch.Generator) -> Draw:
    """Draw the parameters of `clips` augmentations on the CPU: the same whatever device then applies them."""
    # One row a clip, whatever the config switches off: changing one strength does not change the other draws.
    uniform = torch.rand(clips, len(fields(Draw)), generator=generator).unbind(1)

    def around(value: Tensor, centre: float, strength: float) -> Tensor:
        return centre + strength * (2.0 * value - 1.0)

    def between(value: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * value

    return Draw(
        crop_share=between(uniform[0], config.crop_min_share, 1.0),
        crop_left=uniform[1],
        crop_top=uniform[2],
        flip=uniform[3] < config.flip_probability,
        brightness=around(uniform[4], 1.0, config.brightness),
        contrast=around(uniform[5], 1.0, config.contrast),
        saturation=around(uniform[6], 1.0, config.saturation),
        hue=around(uniform[7], 0.0, config.hue),
        gamma=around(uniform[8], 1.0, config.gamma),
        grey=uniform[9] < config.grey_probability,
        erase=uniform[10] < config.erase_probability,
        erase_height=between(uniform[11], config.erase_min_share, config.erase_max_share),
        erase_width=between(uniform[12], config.erase_min_share, config.erase_max_share),
        erase_top=uniform[13],
        erase_left=uniform[14],
    )


def augment_clips(clips_BCTHW: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Vary each clip by one draw of its own, the same for all its frames (paper, 4: temporally consistent).

    Args:
        clips_BCTHW: RGB in [0, 1], any device and any T (1 for a view).
        generator: a CPU generator; its state moves on.
    Returns the same shape, device and range.
    """
    return _varied(clips_BCTHW, config, draw(clips_BCTHW.shape[0], config, generator))


def prepare(
    frame_batch: FrameBatch, config: AugmentConfig, generator: torch.Generator, host_labels_B: Tensor | None = None
) -> Batch:
    """From frames as read to what the game plays with: floats, each clip and each view augmented by its own draw.

    All draws are made now, so that whether anybody looks at the views changes no later one. ``host_labels_B``: see
    :class:`Batch`.
    """
    clips, first, second = (
        partial(_from_bytes, frames, config, draw(len(frames), config, generator))
        for frames in (frame_batch.clips_BTHWC, frame_batch.first_NTHWC, frame_batch.second_NTHWC)
    )
    return Batch(clips(), frame_batch.labels_B, first, second, host_labels_B)


def _from_bytes(frames_BTHWC: Tensor, config: AugmentConfig, drawn: Draw) -> Tensor:
    return _varied(to_float_BCTHW(frames_BTHWC), config, drawn)


def _varied(clips_BCTHW: Tensor, config: AugmentConfig, drawn: Draw) -> Tensor:
    drawn = drawn.to(clips_BCTHW.device)
    varied = _crop_and_flip(clips_BCTHW, drawn)
    if config.recolours:  # what is switched off would multiply by one: the pass over the pixels is saved
        varied = _recolour(varied, drawn)
    return _erase(varied, drawn) if config.erase_probability > 0 else varied


def _crop_and_flip(clips_BCTHW: Tensor, drawn: Draw) -> Tensor:
    """Cut a box out of each clip, bring it back to full size (bilinear) and mirror some.

    Channels and frames are sampled together as the planes of one picture: nothing is transposed, and one grid a
    clip makes it impossible for two frames to be cut differently.
    """
    share, zero = drawn.crop_share, torch.zeros_like(drawn.crop_share)
    mirror = 1.0 - 2.0 * drawn.flip.to(share.dtype)
    # Frame coordinates run from -1 to 1; the centre of the box may lie within ±(1 - share).
    centre_x = (1.0 - share) * (2.0 * drawn.crop_left - 1.0)
    centre_y = (1.0 - share) * (2.0 * drawn.crop_top - 1.0)
    rows = torch.stack(
        [torch.stack([share * mirror, zero, centre_x], dim=1), torch.stack([zero, share, centre_y], dim=1)], dim=1
    )
    planes = clips_BCTHW.flatten(1, 2)
    grid = functional.affine_grid(rows.to(planes.dtype), list(planes.shape), align_corners=False)
    sampled = functional.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.reshape(clips_BCTHW.shape)


GREY_WEIGHTS = (0.299, 0.587, 0.114)  # luma of BT.601, as torchvision and PIL weigh it
# RGB -> YIQ: a turn of the I-Q plane turns the hue and leaves the luma as it is.
YIQ_FROM_RGB = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


@cache
def _rgb_from_yiq() -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, torch.linalg.inv(torch.tensor(YIQ_FROM_RGB)).tolist()))


def _recolour(clips_BCTHW: Tensor, drawn: Draw) -> Tensor:
    """Brightness, contrast, saturation, hue and grey as one 3×3 matrix and one offset a clip; then gamma.

    All five are linear in RGB, so one pass over the pixels does them. Contrast pulls towards the mean grey of the
    whole clip, not of each frame, which would make the clip flicker.
    """
    dtype, device = clips_BCTHW.dtype, clips_BCTHW.device
    luma_C = constant(GREY_WEIGHTS, dtype, device)
    colour_BCC = drawn.brightness.to(dtype)[:, None, None] * _chroma_matrix(drawn, dtype)
    contrast_B = drawn.contrast.to(dtype)
    mean_BC = torch.einsum("bij,bj->bi", colour_BCC, clips_BCTHW.mean(dim=(2, 3, 4)))
    offset_B = (1.0 - contrast_B) * (mean_BC @ luma_C)
    matrix_BCC = contrast_B[:, None, None] * colour_BCC
    mixed = torch.einsum("bij,bjthw->bithw", matrix_BCC, clips_BCTHW) + offset_B[:, None, None, None, None]
    return mixed.clamp(0.0, 1.0).pow(drawn.gamma.to(dtype)[:, None, None, None, None])


def _chroma_matrix(drawn: Draw, dtype: torch.dtype) -> Tensor:
    """(B,3,3): saturation scales the chroma plane, hue turns it, a grey clip loses it; luma is untouched."""
    device = drawn.hue.device
    to_yiq, from_yiq = constant(YIQ_FROM_RGB, dtype, device), constant(_rgb_from_yiq(), dtype, device)
    saturation = torch.where(drawn.grey, 0.0, drawn.saturation).to(dtype)
    angle = (2.0 * math.pi * drawn.hue).to(dtype)
    one, zero = torch.ones_like(angle), torch.zeros_like(angle)
    cos, sin = saturation * torch.cos(angle), saturation * torch.sin(angle)
    rows = [one, zero, zero, zero, cos, -sin, zero, sin, cos]
    turn_B33 = torch.stack(rows, dim=1).reshape(-1, 3, 3)
    matrix_BCC: Tensor = from_yiq @ turn_B33 @ to_yiq
    return matrix_BCC


def _erase(clips_BCTHW: Tensor, drawn: Draw) -> Tensor:
    """Blacken one box of each drawn clip, at the same place in all its frames."""
    height, width = clips_BCTHW.shape[-2:]
    inside_BH = _within(height, drawn.erase_top, drawn.erase_height)
    inside_BW = _within(width, drawn.erase_left, drawn.erase_width)
    box_BHW = inside_BH[:, :, None] & inside_BW[:, None, :] & drawn.erase[:, None, None]
    return clips_BCTHW.masked_fill(box_BHW[:, None, None], 0.0)


def _within(length: int, position_B: Tensor, share_B: Tensor) -> Tensor:
    """(B, length) bool: the run of round(share × length) pixels that starts at `position` of the room left."""
    run_B = torch.round(share_B * length)
    start_B = torch.round(position_B * (length - run_B))
    pixels = torch.arange(length, device=share_B.device)
    return (pixels >= start_B[:, None]) & (pixels < (start_B + run_B)[:, None])
