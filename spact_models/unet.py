"""The U-Net inside f_A, and of the attacker that wants to undo it (paper, 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spact_models.norms import Norm, make_norm


class DoubleConv(nn.Sequential):
    """(3×3 convolution, norm, ReLU) twice: one level of the U-Net."""

    def __init__(self, channels_in: int, channels_between: int, channels_out: int, norm: Norm) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_between, 3, padding=1),
            make_norm(norm, channels_between, 2),
            nn.ReLU(),
            nn.Conv2d(channels_between, channels_out, 3, padding=1),
            make_norm(norm, channels_out, 2),
            nn.ReLU(),
        )


class UNet(nn.Module):
    """Pictures (N,C,H,W) of any size -> pictures (N,3,H,W) in [0, 1], by a sigmoid.

    With 64 base channels, 4 halvings, patches of 1 and batch norm this is the paper's network of 17.27 M parameters
    (U-Net with bilinear up-sampling, so that the lowest level has 512 channels and not 1024).
    """

    def __init__(
        self,
        channels_in: int,
        base_channels: int,
        depth: int,
        norm: Norm,
        patch_px: int = 1,
        input_skip: bool = False,
        copied_channels: int = 0,
    ) -> None:
        super().__init__()
        self.patch_px, self.depth, self.input_skip = patch_px, depth, input_skip
        planes_in = channels_in * patch_px**2
        widths = [base_channels * 2**level for level in range(depth + 1)]
        widths[-1] //= 2  # bilinear up-sampling keeps the channel count, so the lowest level is halved instead
        self.entry = DoubleConv(planes_in, widths[0], widths[0], norm)
        self.downs = nn.ModuleList(DoubleConv(widths[i], widths[i + 1], widths[i + 1], norm) for i in range(depth))
        ups = []
        below = widths[-1]
        for level in reversed(range(depth)):
            joined = below + widths[level]
            above = widths[level] // 2 if level else widths[level]
            ups.append(DoubleConv(joined, joined // 2, above, norm))
            below = above
        self.ups = nn.ModuleList(ups)
        self.exit = nn.Conv2d(widths[0] + (planes_in if input_skip else 0), 3 * patch_px**2, 1)
        if input_skip and copied_channels:
            self._start_as_copy(copied_channels * patch_px**2)

    def forward(self, pictures_NCHW: Tensor) -> Tensor:
        height, width = pictures_NCHW.shape[-2:]
        patches = functional.pixel_unshuffle(self._padded(pictures_NCHW), self.patch_px)
        level = self.entry(patches)
        skips = []
        for down in self.downs:
            skips.append(level)
            level = down(functional.max_pool2d(level, 2))
        for up in self.ups:
            raised = functional.interpolate(level, scale_factor=2, mode="bilinear", align_corners=True)
            skip = skips.pop()
            level = up(torch.cat([skip, raised.to(skip.dtype)], dim=1))  # a GPU's autocast raises in float32
        if self.input_skip:
            level = torch.cat([level, patches], dim=1)
        logits_NCHW = functional.pixel_shuffle(self.exit(level), self.patch_px)
        return torch.sigmoid(logits_NCHW[:, :, :height, :width])

    @torch.no_grad()
    def _start_as_copy(self, planes: int) -> None:
        """Let the last layer begin as sigmoid(4 x - 2) ≈ x of its last ``planes``, a grey one serving all colours."""
        planes_out = self.exit.out_channels
        copy = torch.eye(planes, device=self.exit.weight.device).repeat(planes_out // planes, 1)
        self.exit.weight[:, -planes:, 0, 0] = 4.0 * copy
        assert self.exit.bias is not None
        self.exit.bias.fill_(-2.0)

    def _padded(self, pictures_NCHW: Tensor) -> Tensor:
        """Repeat the last row and column until every level halves evenly."""
        unit = self.patch_px * 2**self.depth
        below, right = (-pictures_NCHW.shape[-2]) % unit, (-pictures_NCHW.shape[-1]) % unit
        if not below and not right:
            return pictures_NCHW
        return functional.pad(pictures_NCHW, (0, right, 0, below), mode="replicate")
