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

from spact_models.errors import UserError
from spact_models.game_settings import JudgeConfig
from spact_models.judge_set import JudgeSet, room
from spact_models.seeds import seed_for, seeded
from spact_models.unet import UNet

SSIM_WINDOW_PX = 7  # scikit-image's own, made smaller on tiny pictures
EQUAL_DB = 58.92  # 10 log10(255² / (1/12)): a frame that differs by rounding alone; equal frames count as this
GUESS_FRAMES = 256  # that the linear guess is drawn from: a hundred thousand pixels and more
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
    """The best linear guess, pixel by pixel, from a window of anonymised frames and the mean training picture; and a
    U-Net that corrects it.

    A U-Net that begins by repeating what it is shown stays 2 dB below the mean picture on one-bit differences after
    100 steps: that start is a bad one there, and its weights are too large to be forgotten soon.
    """

    def __init__(self, inverter: Inverter, mean_3HW: Tensor, guess_3P: Tensor) -> None:
        """``guess_3P``: each colour's weights on the P = 3 × window + 3 planes and 1."""
        super().__init__()
        self.register_buffer("mean_3HW", mean_3HW)
        self.register_buffer("guess_3P", guess_3P)
        planes = guess_3P.shape[1] - 1
        self.unet = UNet(planes, inverter.base_channels, inverter.depth, "group", inverter.patch_px, input_skip=True)
        nn.init.zeros_(self.unet.exit.weight)
        nn.init.zeros_(self.unet.exit.bias)  # type: ignore[arg-type]  # its bias is there

    def forward(self, windows_NCHW: Tensor) -> Tensor:
        planes_NPHW = _planes(windows_NCHW, self.mean_3HW)  # type: ignore[arg-type]
        weights_3P11: Tensor = self.guess_3P[:, :-1, None, None]  # type: ignore[index]
        guess_N3HW = functional.conv2d(planes_NPHW, weights_3P11, self.guess_3P[:, -1])  # type: ignore[index]
        correction_N3HW: Tensor = 2 * self.unet(planes_NPHW) - 1
        return guess_N3HW + correction_N3HW


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
    mean_HWC = _mean_picture(raw_MTHWC)
    mean_3HW = mean_HWC.permute(2, 0, 1).float() / 255
    generator = torch.Generator().manual_seed(seed_for("inversion-batches", seed))
    guess_3P = _linear_guess(train_seen.clips_MTHWC, raw_MTHWC, mean_3HW, inverter.window, generator)
    with seeded("inversion", seed):
        network = _Restorer(inverter, mean_3HW, guess_3P).to(device)
    _fit(network, inverter, train_seen.clips_MTHWC, raw_MTHWC, config, generator, on_step)
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
            f"raw clips {tuple(raw_MTHWC.shape)} and anonymized ones {tuple(seen.clips_MTHWC.shape)} must be the same "
            "clips, the anonymized without lead-in"
        )
    return raw_MTHWC


def _windows(clips_MTHWC: Tensor, clip_N: Tensor, frame_N: Tensor, window: int, device: torch.device) -> Tensor:
    """(N, 3 × window, H, W) in 0…1: each asked frame with its neighbours in its clip, earliest first."""
    offsets = torch.arange(window) - window // 2
    near_NW = (frame_N[:, None] + offsets).clamp(0, clips_MTHWC.shape[1] - 1)
    seen_NWHWC = clips_MTHWC[clip_N[:, None], near_NW].to(device)
    return seen_NWHWC.permute(0, 1, 4, 2, 3).flatten(1, 2).float() / 255


def _planes(windows_NCHW: Tensor, mean_3HW: Tensor) -> Tensor:
    """(N, 3 × window + 3, H, W): what the attacker knows of each frame."""
    return torch.cat([windows_NCHW, mean_3HW.expand(len(windows_NCHW), -1, -1, -1)], dim=1)


def _mean_picture(clips_MTHWC: Tensor) -> Tensor:
    """(H,W,3) uint8, in pieces: the clips may lie on a disk and not fit the memory."""
    total_HWC = torch.zeros(clips_MTHWC.shape[2:], dtype=torch.int64)
    for part in torch.split(clips_MTHWC, 64):
        total_HWC += part.sum(dim=(0, 1), dtype=torch.int64)
    return (total_HWC.double() / (clips_MTHWC.shape[0] * clips_MTHWC.shape[1])).round().to(torch.uint8)


def _linear_guess(
    seen_MTHWC: Tensor, raw_MTHWC: Tensor, mean_3HW: Tensor, window: int, generator: torch.Generator
) -> Tensor:
    """(3, P) least-squares weights of a raw pixel on the planes at its place and 1, over GUESS_FRAMES drawn frames."""
    clip_N = torch.randint(seen_MTHWC.shape[0], (GUESS_FRAMES,), generator=generator)
    frame_N = torch.randint(seen_MTHWC.shape[1], (GUESS_FRAMES,), generator=generator)
    squares, products = torch.zeros(()), torch.zeros(())
    for clips, frames in zip(torch.split(clip_N, 64), torch.split(frame_N, 64), strict=True):
        planes_NPHW = _planes(_windows(seen_MTHWC, clips, frames, window, mean_3HW.device), mean_3HW)
        known_KP = functional.pad(planes_NPHW.permute(0, 2, 3, 1).flatten(0, 2).double(), (0, 1), value=1.0)
        wanted_K3 = raw_MTHWC[clips, frames].flatten(0, 2).double() / 255
        squares, products = squares + known_KP.T @ known_KP, products + known_KP.T @ wanted_K3
    ridge = 1e-6 * squares.trace() * torch.eye(len(squares), dtype=squares.dtype)  # planes that are all black, or alike
    weights_P3: Tensor = torch.linalg.solve(squares + ridge, products)
    return weights_P3.T.float()


def _fit(
    network: _Restorer,
    inverter: Inverter,
    seen_MTHWC: Tensor,
    raw_MTHWC: Tensor,
    config: JudgeConfig,
    generator: torch.Generator,
    on_step: Callable[[], object],
) -> None:
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
    restored_MTHWC = room(seen_MTHWC.shape)
    for clip_B in torch.split(torch.arange(clips), max(1, batch)):
        clip_N, frame_N = clip_B.repeat_interleave(frames), torch.arange(frames).repeat(len(clip_B))
        with torch.inference_mode():
            restored_N3HW = network(_windows(seen_MTHWC, clip_N, frame_N, inverter.window, device))
            levels_NHW3 = restored_N3HW.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
        restored_MTHWC[clip_B] = levels_NHW3.unflatten(0, (len(clip_B), frames)).clone()
    return restored_MTHWC
