"""The reconstruction attacker: a fresh network that learns to give back the raw frames from the anonymised ones.

It stands for somebody who holds an anonymised video and the released f_A: such a person can put other people's footage
through f_A and learn the way back. So it learns on the training rows, raw beside anonymised, and is asked about test
rows. What it restores is measured twice: as a picture (PSNR, SSIM; beside them what the mean training picture scores,
which needs no anonymised video at all), and as evidence, by fresh attackers on the restored clips (the caller's part).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torch.nn import functional

from spact_models.anonymizer import UNet
from spact_models.errors import UserError
from spact_models.judge import BUILDING, JudgeSet
from spact_models.seeds import seed_for, seeded
from spact_models.settings import JudgeConfig

SSIM_WINDOW_PX = 7  # scikit-image's own, made smaller on tiny pictures
EQUAL_DB = 58.92  # 10 log10(255² / (1/12)): a frame that differs by rounding alone; equal frames count as this
SCORED_FRAMES = 16  # of each video, evenly spread over its clips: overlapping clips hold the same frames many times


@dataclass(frozen=True)
class Inverter:
    """The attacker's network and aim."""

    base_channels: int = 16  # after 100 steps on pixelated clips as good as 24: 24.5 dB both
    depth: int = 3
    patch_px: int = 2  # less than half the time of 1, for 1.5 dB on frames that hide nothing (39.7 against 41.2)
    window: int = 3  # anonymised frames it sees for one raw frame: this one and its neighbours, clip ends repeated
    mse_weight: float = 1.0  # beside L1, whose best guess is a median; PSNR counts squares

    def __post_init__(self) -> None:
        if self.window < 1 or self.window % 2 == 0:
            raise UserError(f"inverter.window = {self.window}, must be odd (1 = the frame alone, 3 = both neighbours)")
        if self.mse_weight < 0.0:
            raise UserError(f"inverter.mse_weight = {self.mse_weight}, must be at least 0 (0 = L1 alone)")


def inverter_for(size_px: int) -> Inverter:
    """Small frames, small network: up to 48 px it learns in half a minute on a CPU core."""
    return Inverter() if size_px <= 48 else Inverter(base_channels=32, depth=4)


@dataclass(frozen=True)
class Inversion:
    """How well raw frames were restored, by test video, and what was restored.

    ``floor_…``: the same figures for the mean training picture. ``train`` and ``test`` are the anonymised sets with
    restored 8-bit clips in them, to train and ask identity attackers on; their views stay anonymised.
    """

    psnr_db_V: Tensor
    ssim_V: Tensor
    floor_psnr_db_V: Tensor
    floor_ssim_V: Tensor
    train: JudgeSet
    test: JudgeSet


class _Restorer(nn.Module):
    """U-Net over a window of anonymised frames and the mean training picture; begins by repeating what it is shown."""

    def __init__(self, inverter: Inverter, mean_3HW: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean_3HW", mean_3HW)
        planes = 3 * inverter.window + 3
        self.unet = UNet(
            planes, inverter.base_channels, inverter.depth, "group", patch_px=inverter.patch_px, input_skip=True
        )
        patch = inverter.patch_px**2
        middle = (3 * (inverter.window // 2) - planes) * patch  # of the last layer's inputs, counted from their end
        with torch.no_grad():
            # sigmoid(4 x - 2) ≈ x
            self.unet.exit.weight[:, middle : middle + 3 * patch, 0, 0] = 4.0 * torch.eye(3 * patch)
            self.unet.exit.bias.fill_(-2.0)  # type: ignore[union-attr]

    def forward(self, windows_NCHW: Tensor) -> Tensor:
        mean_N3HW = self.mean_3HW.expand(len(windows_NCHW), -1, -1, -1)  # type: ignore[operator]
        restored_N3HW: Tensor = self.unet(torch.cat([windows_NCHW, mean_N3HW], dim=1))
        return restored_N3HW


def invert(
    train: JudgeSet,
    train_seen: JudgeSet,
    test: JudgeSet,
    test_seen: JudgeSet,
    config: JudgeConfig,
    device: torch.device,
    seed: int,
    inverter: Inverter | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> Inversion:
    """Train a fresh inverter on raw ``train`` and anonymised ``train_seen``, ask it about ``test_seen``.

    ``…_seen`` are the raw sets ``through`` an anonymizer: the same clips without their lead-in. ``config`` gives steps,
    batch (windows a step) and learning rate; ``on_step`` is called after each. The answer depends on ``seed`` and the
    sets alone, and torch's global generator is left as it was.

    Raises ValueError: sets that are not of the same clips.
    """
    inverter = inverter or inverter_for(train_seen.clips_MTHWC.shape[-2])
    raw_MTHWC, asked_MTHWC = _raw_of(train, train_seen), _raw_of(test, test_seen)
    mean_HWC = raw_MTHWC.float().mean(dim=(0, 1)).round().to(torch.uint8)
    with BUILDING, seeded("inversion", seed):
        network = _Restorer(inverter, mean_HWC.permute(2, 0, 1).float() / 255).to(device)
    _fit(network, inverter, train_seen.clips_MTHWC, raw_MTHWC, config, seed, on_step)
    restored = [
        replace(held, clips_MTHWC=_restore(network, inverter, held.clips_MTHWC, config.batch))
        for held in (train_seen, test_seen)
    ]
    psnr_db_V, ssim_V = picture_scores(asked_MTHWC, restored[1].clips_MTHWC, test.video_M, test.videos)
    floor_db_V, floor_ssim_V = picture_scores(asked_MTHWC, mean_HWC.expand_as(asked_MTHWC), test.video_M, test.videos)
    return Inversion(psnr_db_V, ssim_V, floor_db_V, floor_ssim_V, *restored)


def picture_scores(raw_MTHWC: Tensor, shown_MTHWC: Tensor, video_M: Tensor, videos: int) -> tuple[Tensor, Tensor]:
    """PSNR in dB and SSIM (V,) of 8-bit clips: means over up to SCORED_FRAMES frames of each video, evenly spread."""
    psnr_db_V, ssim_V = torch.zeros(videos), torch.zeros(videos)
    for video in range(videos):
        mine = torch.nonzero(video_M == video).flatten()
        pairs = [each_MTHWC[mine].flatten(0, 1).numpy() for each_MTHWC in (raw_MTHWC, shown_MTHWC)]
        frames = np.unique(np.linspace(0, len(pairs[0]) - 1, SCORED_FRAMES).round().astype(int))
        scores = np.array([_frame_scores(pairs[0][t], pairs[1][t]) for t in frames])
        psnr_db_V[video], ssim_V[video] = scores.mean(axis=0).tolist()
    return psnr_db_V, ssim_V


def _frame_scores(raw_HWC: np.ndarray, shown_HWC: np.ndarray) -> tuple[float, float]:
    if np.array_equal(raw_HWC, shown_HWC):
        return EQUAL_DB, 1.0
    side = min(SSIM_WINDOW_PX, *raw_HWC.shape[:2])
    window = {"win_size": side - (side + 1) % 2, "channel_axis": -1}  # odd
    ssim = structural_similarity(raw_HWC, shown_HWC, **window, data_range=255)  # type: ignore[no-untyped-call]
    psnr_db = peak_signal_noise_ratio(raw_HWC, shown_HWC, data_range=255)  # type: ignore[no-untyped-call]
    return min(EQUAL_DB, float(psnr_db)), float(ssim)


def _raw_of(raw: JudgeSet, seen: JudgeSet) -> Tensor:
    """(M,T,H,W,3): the raw frames that answer to the anonymised ones."""
    raw_MTHWC = raw.clips_MTHWC[:, raw.lead_in_frames :]
    if seen.lead_in_frames or raw_MTHWC.shape != seen.clips_MTHWC.shape or not torch.equal(raw.video_M, seen.video_M):
        raise ValueError(
            f"raw clips {tuple(raw_MTHWC.shape)} and anonymised ones {tuple(seen.clips_MTHWC.shape)} must be the same "
            "clips, the anonymised without lead-in"
        )
    return raw_MTHWC


def _windows(clips_MTHWC: Tensor, clip_N: Tensor, frame_N: Tensor, window: int, device: torch.device) -> Tensor:
    """(N, 3 × window, H, W) in 0…1: each asked frame with its neighbours in its clip, earliest first."""
    offsets = torch.arange(window) - window // 2
    near_NW = (frame_N[:, None] + offsets).clamp(0, clips_MTHWC.shape[1] - 1)
    seen_NWHWC = clips_MTHWC[clip_N[:, None], near_NW].to(device)
    return seen_NWHWC.permute(0, 1, 4, 2, 3).flatten(1, 2).float() / 255


def _fit(
    network: _Restorer,
    inverter: Inverter,
    seen_MTHWC: Tensor,
    raw_MTHWC: Tensor,
    config: JudgeConfig,
    seed: int,
    on_step: Callable[[], object],
) -> None:
    generator = torch.Generator().manual_seed(seed_for("inversion-batches", seed))
    device = network.unet.exit.weight.device
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps)
    network.train()
    for _ in range(config.steps):
        clip_N = torch.randint(seen_MTHWC.shape[0], (config.batch,), generator=generator)
        frame_N = torch.randint(seen_MTHWC.shape[1], (config.batch,), generator=generator)
        restored_N3HW = network(_windows(seen_MTHWC, clip_N, frame_N, inverter.window, device))
        raw_N3HW = raw_MTHWC[clip_N, frame_N].to(device).permute(0, 3, 1, 2).float() / 255
        loss = functional.l1_loss(restored_N3HW, raw_N3HW)
        loss = loss + inverter.mse_weight * functional.mse_loss(restored_N3HW, raw_N3HW)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        on_step()


def _restore(network: _Restorer, inverter: Inverter, seen_MTHWC: Tensor, batch: int) -> Tensor:
    """Every frame of every clip given back, 8-bit, the shape of ``seen_MTHWC``."""
    network.eval()
    device = network.unet.exit.weight.device
    clips, frames = seen_MTHWC.shape[:2]
    restored_MTHWC = torch.empty_like(seen_MTHWC)
    for clip_B in torch.split(torch.arange(clips), max(1, batch)):
        clip_N, frame_N = clip_B.repeat_interleave(frames), torch.arange(frames).repeat(len(clip_B))
        with torch.inference_mode():
            restored_N3HW = network(_windows(seen_MTHWC, clip_N, frame_N, inverter.window, device))
            levels_NHW3 = restored_N3HW.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
        restored_MTHWC[clip_B] = levels_NHW3.unflatten(0, (len(clip_B), frames)).clone()
    return restored_MTHWC
