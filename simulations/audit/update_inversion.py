"""Clips restored from a site's update: gradient inversion (Geiping et al. 2020) against f_A and f_T together.

The attacker is the server. It knows the weights it sent, the labels, the seed of f_A's noise, and that the update is
one step of gradient descent on L_T: all of it is the worst case, a real round is hundreds of Adam's steps. It looks
for pictures whose gradient points where the update points, with a price for roughness. What it restores is what f_A's
U-Net sees, because nothing else reaches the update: the frames themselves for an anonymizer of kind "frame", the
picture of what moves for one of kind "motion".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn import functional

from spact_models.networks import Networks
from spact_models.seeds import noise_like, seed_for

LEARNING_RATE = 0.1  # of the pictures, by the sign of their gradient, as Geiping et al. do; falls to a hundredth
ROUGHNESS = 1e-3  # price of the total variation: best of 1e-4, 1e-3, 1e-2 on one clip, with the same steps


@dataclass(frozen=True)
class Target:
    """What the attacker holds: a direction, and what it knows beside it, all on the networks' device."""

    direction: list[Tensor]  # as long as the trained parameters
    labels_B: Tensor
    noise: Tensor | None  # f_A's, standard normal; None: f_A adds none
    shape: tuple[int, ...]  # of the pictures, (B, C, T, H, W)
    brightness: float = 0.5  # of such pictures on average, which anybody's own footage tells: where the search begins


@dataclass(frozen=True)
class Restored:
    """How like the truth the restored pictures are, clip by clip."""

    psnr_db: list[float]
    ssim: list[float]
    matched: list[bool]  # whether the clip is told apart from the site's others by what was restored


def gradient_of(networks: Networks, pictures_BCTHW: Tensor, labels_B: Tensor, noise: Tensor | None) -> list[Tensor]:
    """The gradient of L_T by all parameters of f_A and f_T, with a graph."""
    shown_BCTHW = networks.anonymizer.shown(pictures_BCTHW, noise)
    loss = functional.cross_entropy(networks.action(shown_BCTHW), labels_B)
    return list(torch.autograd.grad(loss, parameters(networks), create_graph=True))


def parameters(networks: Networks) -> list[Tensor]:
    return [*networks.anonymizer.parameters(), *networks.action.parameters()]


def noise_for(networks: Networks, pictures_BCTHW: Tensor, seed: int) -> Tensor | None:
    """f_A's own noise as training draws it from a seed that the server knows."""
    if networks.anonymizer.config.output_noise == 0:
        return None
    torch.manual_seed(seed_for("noise", seed))
    with torch.no_grad():
        return noise_like(networks.anonymizer.drawing(pictures_BCTHW))


def invert(networks: Networks, target: Target, steps: int, seed: int, on_step: Callable[[], object]) -> Tensor:
    """The pictures that the attacker ends with, in [0, 1], on the target's device."""
    generator, device = torch.Generator().manual_seed(seed), target.direction[0].device
    guess = (target.brightness + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1)
    guess = guess.to(device).requires_grad_()
    optimizer = torch.optim.Adam([guess], LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, LEARNING_RATE / 100)
    length = math.sqrt(sum(float(part.double().square().sum()) for part in target.direction))
    for _ in range(steps):
        found = gradient_of(networks, guess, target.labels_B, target.noise)
        along = sum((mine * theirs).sum() for mine, theirs in zip(found, target.direction, strict=True))
        size = torch.sqrt(sum((part.square().sum() for part in found), torch.zeros((), device=device)))
        loss = 1 - along / (size * length + 1e-12) + ROUGHNESS * _roughness(guess)
        (gradient,) = torch.autograd.grad(loss, guess)
        guess.grad = gradient.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            guess.clamp_(0, 1)
        on_step()
    return guess.detach()


def compare(restored_BCTHW: Tensor, true_BCTHW: Tensor, others_NCTHW: Tensor) -> Restored:
    """Hold restored pictures against the true ones; which is whose is not known, so the best pairing counts.

    Args:
        restored_BCTHW: on any device; the others lie on the CPU.
        others_NCTHW: the site's other clips; ``matched`` asks whether a true clip is nearer to its restored picture
            than all of them.
    """
    restored_BCTHW = restored_BCTHW.cpu()
    alike_BB = _correlation(restored_BCTHW, true_BCTHW)
    rows, columns = linear_sum_assignment(-alike_BB)
    out = Restored([], [], [])
    alike_BN = _correlation(restored_BCTHW, others_NCTHW)
    for row, column in zip(rows, columns, strict=True):
        mine, true = restored_BCTHW[row].numpy(), true_BCTHW[column].numpy()
        error = float(np.square(mine - true).mean())
        out.psnr_db.append(10 * math.log10(1 / max(error, 1e-6)))
        out.ssim.append(_ssim(mine, true))
        out.matched.append(bool(alike_BB[row, column] > alike_BN[row].max()))
    return out


def noised(direction: Sequence[Tensor], bound: float, deviation: float, seed: int) -> list[Tensor]:
    """Clipped to ``bound`` as one vector, plus Gaussian noise."""
    length = math.sqrt(sum(float(part.double().square().sum()) for part in direction))
    scale = min(1.0, bound / max(length, 1e-12))
    generator = torch.Generator().manual_seed(seed)
    # drawn on the CPU: the same noise on every device
    return [
        part * scale + deviation * torch.randn(part.shape, generator=generator).to(part.device) for part in direction
    ]


def _roughness(pictures_BCTHW: Tensor) -> Tensor:
    across = (pictures_BCTHW[..., 1:] - pictures_BCTHW[..., :-1]).abs().mean()
    down = (pictures_BCTHW[..., 1:, :] - pictures_BCTHW[..., :-1, :]).abs().mean()
    return across + down


def _correlation(first: Tensor, second: Tensor) -> np.ndarray:
    """(B, N): of each picture of the first with each of the second."""
    flat = [each.flatten(1).double() for each in (first, second)]
    flat = [functional.normalize(each - each.mean(dim=1, keepdim=True), dim=1) for each in flat]
    out: np.ndarray = (flat[0] @ flat[1].T).numpy()
    return out


def _ssim(mine_CTHW: np.ndarray, true_CTHW: np.ndarray) -> float:
    frames = zip(np.moveaxis(mine_CTHW, 1, 0), np.moveaxis(true_CTHW, 1, 0), strict=True)
    window = min(7, true_CTHW.shape[-1] - (1 - true_CTHW.shape[-1] % 2))
    similarity: Any = structural_similarity  # it has no types
    scores = [similarity(a, b, channel_axis=0, data_range=1.0, win_size=window) for a, b in frames]
    return float(np.mean(scores))
