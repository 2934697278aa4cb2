"""f_A, the anonymizer: a clip in, an anonymised clip of the same shape out (paper, 3.1).

Two kinds behind one call. `frame` is the paper's U-Net, which sees one frame at a time and must guess what moves.
`motion` feeds the same U-Net with what changed from frame to frame, so that the look of things can be left out before
the first layer. Everything called like an anonymizer, trained or not, is a `ClipTransform`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from spact_models.errors import UserError
from spact_models.norms import Norm, check_norm
from spact_models.seeds import noise_like, unknown_noise
from spact_models.unet import UNet
from spact_models.views import GREY_WEIGHTS

Kind = Literal["frame", "motion"]
MotionInput = Literal["onebit", "difference", "frames"]

DIFFERENCE_GAIN = 3.0  # grey differences of real footage are faint; × 3 spreads them over [0, 1]


class ClipTransform(nn.Module):
    """What turns clips into clips: anonymizers and obfuscations alike.

    `history` is the number of earlier frames each output frame needs. A clip carries that many lead-in frames in
    front; `transform` consumes them.
    """

    history: int = 0

    def transform(self, clip_BCTHW: Tensor) -> Tensor:
        """(B,3,T,H,W) with `history` lead-in frames, in [0, 1] -> (B,3,T-history,H,W) in [0, 1]."""
        raise NotImplementedError

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Same shape out: the first `history` frames, which have nothing before them, are black and never raw.

        The clip is taken as the start of a stream or the first frames after a cut.
        """
        batch, _, frames, height, width = clip_BCTHW.shape
        black = clip_BCTHW.new_zeros(batch, 3, min(self.history, frames), height, width)
        if frames <= self.history:
            return black
        return torch.cat([black, self.transform(clip_BCTHW)], dim=2) if self.history else self.transform(clip_BCTHW)


def represent(transform: ClipTransform, clip_BCTHW: Tensor, lead_in_frames: int) -> Tensor:
    """Transform a clip read with `lead_in_frames` in front: (B,3,T,H,W) -> (B,3,T-lead_in_frames,H,W).

    Lead-in beyond the transform's own history is dropped, so transforms with and without history see the same
    clip of the same loader and answer for the same frames.
    """
    surplus = lead_in_frames - transform.history
    if surplus < 0:
        raise ValueError(f"clips carry {lead_in_frames} lead-in frames, the transform needs {transform.history}")
    return transform.transform(clip_BCTHW[:, :, surplus:])


def per_frame(network: Callable[[Tensor], Tensor], clip_BCTHW: Tensor) -> Tensor:
    """Apply a picture network to every frame: (B,C,T,H,W) -> (B,C',T,H',W'). The only place that folds time.

    C and T change places before the fold; a plain reshape would hand the network three moments of one colour as RGB.
    Frames of a clip stay neighbours (clip-major), which is what per-clip gradient clipping sums over.
    """
    batch, channels, frames, height, width = clip_BCTHW.shape
    moved_BTCHW = clip_BCTHW.permute(0, 2, 1, 3, 4)
    if torch.compiler.is_exporting():  # a graph would hold for one frame or for several: only one folds without a copy
        moved_BTCHW = moved_BTCHW.clone(memory_format=torch.contiguous_format)
    frames_NCHW = moved_BTCHW.reshape(batch * frames, channels, height, width)
    mapped_NCHW = network(frames_NCHW)
    return mapped_NCHW.reshape(batch, frames, *mapped_NCHW.shape[1:]).permute(0, 2, 1, 3, 4)


def grey(clip_BCTHW: Tensor) -> Tensor:
    """(B,3,T,H,W) -> (B,1,T,H,W): BT.601 luma."""
    red, green, blue = clip_BCTHW.unbind(dim=1)
    return (GREY_WEIGHTS[0] * red + GREY_WEIGHTS[1] * green + GREY_WEIGHTS[2] * blue).unsqueeze(1)


def grey_difference(clip_BCTHW: Tensor) -> Tensor:
    """(B,3,T,H,W) -> (B,1,T-1,H,W): |grey - previous grey| × 3, cut at 1."""
    grey_B1THW = grey(clip_BCTHW)
    change = (grey_B1THW[:, :, 1:] - grey_B1THW[:, :, :-1]).abs()
    return (DIFFERENCE_GAIN * change).clamp(max=1.0)


def onebit_difference(clip_BCTHW: Tensor, threshold: float) -> Tensor:
    """(B,3,T,H,W) -> (B,1,T-1,H,W): 1 where the colour channel that changed most did so by more than `threshold`."""
    change = (clip_BCTHW[:, :, 1:] - clip_BCTHW[:, :, :-1]).abs().amax(dim=1, keepdim=True)
    return (change > threshold).to(clip_BCTHW.dtype)


@dataclass(frozen=True)
class AnonymizerConfig:
    """What an f_A is. Travels inside its checkpoint: what was judged is what a user gets."""

    kind: Kind = "frame"  # the paper's
    motion_input: MotionInput = "onebit"  # the least look before the first layer; unread by kind "frame"
    motion_frames: int = 1  # earlier frames that the U-Net sees, each a stride before the next; unread by kind "frame"
    threshold: float = 0.15  # of the one-bit picture: above sensor noise, below a moving limb
    output_noise: float = 0.0  # standard deviation, in training and in use; 0 = same frame, same answer
    output_levels: int = 0  # values each channel may take; 0 = continuous
    output_cell_px: int = 0  # side of the cells that hold one grey value each; 0 = colours pixel by pixel, the paper's
    base_channels: int = 64  # the paper's
    depth: int = 4  # halvings; the paper's
    patch_px: int = 1  # the U-Net works on patches of this side; 2 quarters its work, 1 is the paper's
    # The last layer sees the input too, and starts by copying it. Group norm takes brightness out of every layer: a
    # small network without this is 0.07 (L1) from the identity after 400 warm-up steps, with it 0.02 after 60. Not in
    # the paper.
    input_skip: bool = False
    norm: Norm = "group"
    size_px: int = 112  # working size: frames are brought to it, anonymised and brought back
    stride_frames: int = 2  # distance in the video between a frame and its predecessor

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(f'anonymizer.kind = "{self.kind}", must be "frame" or "motion"')
        if self.motion_input not in get_args(MotionInput):
            raise UserError(
                f'anonymizer.motion_input = "{self.motion_input}", must be "onebit", "difference" or "frames"'
            )
        if not 0.0 < self.threshold < 1.0:
            raise UserError(f"anonymizer.threshold = {self.threshold}, must lie between 0 and 1 (0.15 = default)")
        if not 0.0 <= self.output_noise <= 1.0:
            raise UserError(f"anonymizer.output_noise = {self.output_noise}, must be within 0 and 1 (0 = none)")
        if not (self.output_levels == 0 or 2 <= self.output_levels <= 256):
            raise UserError(f"anonymizer.output_levels = {self.output_levels}, must be 2…256 (0 = continuous)")
        if self.output_cell_px < 0 or (self.output_cell_px and self.size_px % self.output_cell_px):
            raise UserError(
                f"anonymizer.output_cell_px = {self.output_cell_px}, must be 0 (off) or divide size_px = {self.size_px}"
            )
        for name, least in {
            "motion_frames": 1,
            "base_channels": 1,
            "depth": 1,
            "patch_px": 1,
            "size_px": 8,
            "stride_frames": 1,
        }.items():
            if getattr(self, name) < least:
                raise UserError(f"anonymizer.{name} = {getattr(self, name)}, must be at least {least}")
        check_norm(self.norm)

    @property
    def history(self) -> int:
        """Lead-in frames the anonymizer consumes: known without building it."""
        return self.motion_frames if self.kind == "motion" else 0

    @property
    def input_channels(self) -> int:
        """Planes the U-Net sees."""
        if self.kind == "frame":
            return 3
        return 3 * (self.motion_frames + 1) if self.motion_input == "frames" else self.motion_frames

    @property
    def copied_channels(self) -> int:
        """Of those the last ones, which make the picture that warm-up copies; 0: none of them does."""
        if self.kind == "frame":
            return 3
        return 0 if self.motion_input == "frames" else 1


class Anonymizer(ClipTransform):
    """f_A. RGB clips in [0, 1] in and out; `history` is 0 for kind "frame", `motion_frames` for kind "motion"."""

    def __init__(self, config: AnonymizerConfig) -> None:
        super().__init__()
        self.config = config
        self.history = config.history
        self.unet = UNet(
            config.input_channels,
            config.base_channels,
            config.depth,
            config.norm,
            patch_px=config.patch_px,
            input_skip=config.input_skip,
            copied_channels=config.copied_channels,
        )

    def transform(self, clip_BCTHW: Tensor) -> Tensor:
        return self.shown(self.picture(clip_BCTHW))

    def with_noise(self, clip_BCTHW: Tensor, noise: Tensor) -> Tensor:
        """:meth:`transform` under standard normal noise that the caller drew, (B, 3 or 1, T-history, rows, columns).

        One plane and a value a cell where the output is cells: what an exported graph takes, which draws nothing.
        """
        return self.shown(self.picture(clip_BCTHW), noise)

    def shown(self, picture_BCTHW: Tensor, noise: Tensor | None = None) -> Tensor:
        """What comes of what the U-Net sees (:meth:`picture`): the whole of f_A behind its fixed first step."""
        return self.finished(self.drawing(picture_BCTHW), picture_BCTHW.shape[-2:], noise)

    def drawing(self, picture_BCTHW: Tensor) -> Tensor:
        """What the U-Net draws, before noise and levels: (B, 3 or with cells 1, T-history, rows, columns) in [0, 1]."""
        drawn_BCTHW = per_frame(self.unet, picture_BCTHW)
        cell = self.config.output_cell_px
        if not cell:
            return drawn_BCTHW
        return functional.avg_pool3d(drawn_BCTHW.mean(dim=1, keepdim=True), (1, cell, cell), ceil_mode=True)

    def picture(self, clip_BCTHW: Tensor) -> Tensor:
        """What the U-Net sees: (B,3,T,H,W) -> (B, input_channels, T-history, H, W) in [0, 1]."""
        if self.config.kind == "frame":
            return clip_BCTHW
        if self.config.motion_input == "frames":
            return _side_by_side(clip_BCTHW, self.history + 1)
        if self.config.motion_input == "onebit":
            return _side_by_side(onebit_difference(clip_BCTHW, self.config.threshold), self.history)
        return _side_by_side(grey_difference(clip_BCTHW), self.history)

    def target(self, clip_BCTHW: Tensor) -> Tensor:
        """What warm-up teaches f_A to copy, as RGB: (B,3,T,H,W) -> (B,3,T-history,H,W).

        A frame anonymizer starts as the identity (paper, 4); a motion anonymizer as the newest motion picture that it
        is fed, and as the newest grey difference where it is fed whole frames.
        """
        if self.config.kind == "frame":
            return clip_BCTHW
        newest = clip_BCTHW[:, :, self.history - 1 :]
        if self.config.motion_input == "onebit":
            return onebit_difference(newest, self.config.threshold).expand(-1, 3, -1, -1, -1)
        return grey_difference(newest).expand(-1, 3, -1, -1, -1)

    def at_any_size(self, clip_BCTHW: Tensor) -> Tensor:
        """Bring to the working size, anonymise, bring back: what was judged is what is seen, at any size.

        A clip that starts a stream or follows a cut: its first `history` frames come back black. Noise is drawn from
        the operating system's randomness: from a known seed it could be drawn again and taken away.
        """
        with unknown_noise(clip_BCTHW.device) if self.config.output_noise > 0.0 else nullcontext():
            return self._at_any_size(clip_BCTHW)

    def _at_any_size(self, clip_BCTHW: Tensor) -> Tensor:
        height, width = clip_BCTHW.shape[-2:]
        size = self.config.size_px
        if (height, width) == (size, size):
            return self.forward(clip_BCTHW)
        working = per_frame(lambda frames_NCHW: _resized(frames_NCHW, size, size), clip_BCTHW)
        anonymised = self.forward(working)
        return per_frame(lambda frames_NCHW: _resized(frames_NCHW, height, width), anonymised).clamp(0.0, 1.0)

    def finished(self, drawing_BCTHW: Tensor, size: Sequence[int], noise: Tensor | None = None) -> Tensor:
        """Noise, levels, cells: the last things before a frame leaves, alike in training and in use.

        With cells the noise is one value a cell, so that no average over its pixels or colours can take it away.

        Noise comes from a round's own generator or from torch's global one (seeds.py), which the caller seeds: training
        and the judge so that they can be repeated, use (:meth:`at_any_size`) so that nobody can. The gradient passes
        through rounding as if it were not there.

        Args:
            drawing_BCTHW: from :meth:`drawing`.
            size: height and width of the clip, which cells need not fill evenly.
            noise: standard normal, of the drawing's shape; None draws it.
        """
        clip_BCTHW = drawing_BCTHW
        if self.config.output_noise > 0.0:
            normal = noise_like(clip_BCTHW) if noise is None else noise
            clip_BCTHW = (clip_BCTHW + self.config.output_noise * normal).clamp(0.0, 1.0)
        if self.config.output_levels:
            steps = self.config.output_levels - 1
            rounded = torch.round(clip_BCTHW * steps) / steps
            clip_BCTHW = clip_BCTHW + (rounded - clip_BCTHW).detach()
        cell = self.config.output_cell_px
        if cell:
            height, width = size
            filled = clip_BCTHW.repeat_interleave(cell, dim=3).repeat_interleave(cell, dim=4)
            clip_BCTHW = filled[..., :height, :width].expand(-1, 3, -1, -1, -1)
        return clip_BCTHW


def _side_by_side(pictures_BCTHW: Tensor, count: int) -> Tensor:
    """(B,C,T,H,W) -> (B,count*C,T-count+1,H,W): each picture behind the ``count - 1`` before it, the newest last."""
    length = pictures_BCTHW.shape[2] - count + 1
    return torch.cat([pictures_BCTHW[:, :, place : place + length] for place in range(count)], dim=1)


def _resized(frames_NCHW: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(
        frames_NCHW, size=(height, width), mode="bilinear", align_corners=False, antialias=True
    )
