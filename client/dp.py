"""Differential privacy at the site: the game by groups (``dp.unit = videos``).

A site's videos are dealt into groups by a keyed hash of each one's own name, so that adding a video moves no other.
Every step of every network takes a fresh Poisson sample of the groups. Within a group the game is the game of
``minimax.py``; each group's gradient is clipped, the clipped ones are summed and noised by Opacus' ``DPOptimizer``.

L_B over a whole batch could not be private by clipping: it ties the examples together, and changing one moves the
gradients of all. Here it compares videos inside a group alone, and everything that is drawn for a group (frames,
augmentation, f_A's noise) follows from the group's number and the step, never from what other groups hold. So adding
or removing a group moves the clipped sum by at most C.

All three networks are stepped so: f_B never leaves, but f_A learns from its gradients. How many steps there are follows
from the settings; a group that cannot teach a network gives it a zero, and the step is taken all the same.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from client.video.loader import ClipLoader
from client.video.rows import Row
from spact_models.accounting import steps_of
from spact_models.dp_settings import DpConfig
from spact_models.errors import UserError
from spact_models.game_settings import GameConfig
from spact_models.losses import chance_level, reconstruction
from spact_models.minimax import Player, Players, anonymized_views, has_lesson, loss_action, loss_privacy, priced_clips
from spact_models.noise import ROUNDING_HEADROOM, SecretStream
from spact_models.seeds import seed_for, seed_noise
from spact_models.settings import Settings
from spact_models.speed import batch_on
from spact_models.views import Batch

Draw = Callable[[int, int], Batch | None]  # (step of the round, group) -> what the group shows; None: it is empty


def refuse_unsound(network: nn.Module) -> None:
    """UserError for a network whose examples see each other, or that keeps what no clipping reaches.

    BatchNorm does both; integer buffers are counters of the private data.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"{name}: {type(module).__name__} mixes the examples of a batch, which no clipping undoes; "
                "differential privacy needs networks.norm = 'group'"
            )
    for name, buffer in network.named_buffers():
        kind = "an integer counter" if not buffer.is_floating_point() else "a statistic"
        raise UserError(f"{name}: the network keeps {kind} of its data beside its parameters; use one without buffers")


def group_of(key: bytes, name: str, groups: int) -> int:
    """The group of the video with this name: HMAC-SHA256, so nobody without the site's key can aim at a group."""
    return int.from_bytes(hmac.new(key, name.encode(), hashlib.sha256).digest()[:16], "big") % groups


@dataclass(frozen=True)
class Groups:
    """A site's rows by group, and the batches that they show.

    Args:
        loader: of all the site's rows.
        key, groups, root: a row's group follows from its path below ``root`` (:func:`group_of`).
        seed: of everything that is drawn inside groups; public.
    """

    loader: ClipLoader
    key: bytes
    groups: int
    root: Path
    settings: Settings
    seed: int
    device: torch.device

    @cached_property
    def clip_rows(self) -> list[list[Row]]:
        """The rows that clips are cut from, group by group."""
        return self._dealt(self.loader.rows)

    @cached_property
    def view_rows(self) -> list[list[Row]]:
        """The rows that views are taken from, group by group."""
        return self._dealt(self.loader.view_rows)

    def _dealt(self, rows: Sequence[Row]) -> list[list[Row]]:
        dealt: list[list[Row]] = [[] for _ in range(self.groups)]
        for row in rows:
            dealt[group_of(self.key, os.path.relpath(row.path, self.root), self.groups)].append(row)
        return dealt

    def draw(self, step: int, group: int) -> Batch | None:
        """One clip of each of the group's videos and one pair of views, at most a batch of each."""
        own = seed_for("group", self.seed, step, group)
        rng = np.random.default_rng(own)
        clips = _some(self.clip_rows[group], self.settings.batch.clips, rng)
        views = _some(self.view_rows[group], self.settings.batch.views, rng)
        if not clips and not views:
            return None
        seed_noise("noise", own)  # f_A's output noise
        frames = self.loader.batch_of(clips, views, rng)
        return batch_on(self.device, frames, self.settings, torch.Generator().manual_seed(seed_for("augment", own)))


def _some(rows: list[Row], most: int, rng: np.random.Generator) -> list[Row]:
    return [rows[number] for number in rng.permutation(len(rows))[:most]]


class NoisyOptimizer(DPOptimizer):  # type: ignore[misc] # Opacus has no types
    """Opacus' clipping and summing, with our noise: its own comes from torch's generator, which a seed decides."""

    def __init__(self, player: Player, bound: float, multiplier: float, expected: float, stream: SecretStream) -> None:
        super().__init__(
            player.optimizer,
            noise_multiplier=multiplier,
            max_grad_norm=bound,
            expected_batch_size=expected,  # fixed: how many groups a sample holds must not show
        )
        self._stream = stream

    def add_noise(self) -> None:
        deviation = self.noise_multiplier * self.max_grad_norm * (1 + ROUNDING_HEADROOM)
        for parameter in self.params:
            parameter.grad = self._stream.noised(parameter.summed_grad, deviation).view_as(parameter)

    def take(self, loss: Tensor | None) -> None:
        """Clip one group's gradient and add it to the sum; only one is in memory at a time."""
        gradients: Sequence[Tensor | None] = [None] * len(self.params)
        if loss is not None and loss.requires_grad:
            gradients = torch.autograd.grad(loss, self.params, allow_unused=True)
        if not all(g is None or bool(torch.isfinite(g).all()) for g in gradients):
            gradients = [None] * len(self.params)
        for parameter, gradient in zip(self.params, gradients, strict=True):
            parameter.grad_sample = (torch.zeros_like(parameter) if gradient is None else gradient)[None]
        self.signal_skip_step(True)
        self.step()
        self.zero_grad()

    def close(self) -> None:
        """Noise the sum, divide by the expected number of groups, and step; also where no group was sampled."""
        for parameter in self.params:
            parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)
        self.signal_skip_step(False)
        self.step()
        self.zero_grad()


def noisy_step(
    player: Player, losses: Iterable[Tensor | None], dp: DpConfig, groups: int, stream: SecretStream
) -> None:
    """One private step of one network: each group's loss in turn, then noise and the optimizer's step."""
    optimizer = NoisyOptimizer(player, dp.clip_norm, dp.noise_multiplier, dp.sampling_rate * groups, stream)
    if player.anchor:
        optimizer.attach_step_hook(lambda _: _pull(player))
    for loss in losses:
        optimizer.take(loss)
    optimizer.close()


def _pull(player: Player) -> None:
    """FedProx's term, which no video has a part in: added after the noise."""
    for name, parameter in player.network.named_parameters():
        if name in player.anchor and parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - player.anchor[name], alpha=player.proximal_mu)


def group_loss(role: str, phase: str, players: Players, batch: Batch | None, config: GameConfig) -> Tensor | None:
    """What one group tells the network ``role``: the game's loss over the group alone; None: nothing.

    Only what the loss is made of goes through f_A: clips for f_T, views for f_B.
    """
    if batch is None:
        return None
    device = batch.clips_BCTHW.device
    clips, pairs = len(batch.clips_BCTHW) > 0, len(batch.first_NCTHW) > 1  # a pair needs another to differ from
    if role == "action":
        if not clips or not has_lesson(players, batch):
            return None
        with torch.no_grad(), players.autocast(device):
            shown_BCTHW = players.f_A.transform(batch.clips_BCTHW)
        return loss_action(players, shown_BCTHW, batch)
    if role == "privacy":
        if not pairs:
            return None
        with torch.no_grad(), players.autocast(device):
            views = anonymized_views(players.f_A, batch)
        return loss_privacy(players, *views, config)
    if phase == "warmup":
        if not clips:
            return None
        with players.autocast(device):
            shown_BCTHW = players.f_A.transform(batch.clips_BCTHW)
        return reconstruction(shown_BCTHW, players.f_A.target(batch.clips_BCTHW))
    parts: list[Tensor] = []
    if clips:
        with players.autocast(device):
            shown_BCTHW, price = priced_clips(players.f_A, batch, config)
        parts.append(loss_action(players, shown_BCTHW, batch) + price)
    if pairs and config.omega > 0:  # with 0 f_B's loss would change nothing
        with players.autocast(device):
            views = anonymized_views(players.f_A, batch)
        reward = loss_privacy(players, *views, config)
        if config.cap_reward:
            reward = reward.clamp(max=chance_level(len(batch.first_NCTHW)))
        parts.append(-config.omega * reward)
    return sum(parts[1:], parts[0]) if parts else None


def private_round(
    players: Players,
    phase: str,
    draw: Draw,
    groups: int,
    settings: Settings,
    stream: SecretStream,
    on_step: Callable[[], object] = lambda: None,
) -> None:
    """One local round of noisy steps, in the order of ``accounting.steps_of``."""
    seats = {"anonymizer": players.anonymizer, "action": players.action, "privacy": players.privacy}
    for player in seats.values():
        refuse_unsound(player.network)
    for step, role in enumerate(steps_of(settings, phase)):
        for name, player in seats.items():
            if name == role:
                player.learn()
            else:
                player.hold()
        sampled = np.flatnonzero(stream.chosen(groups, settings.dp.sampling_rate))
        losses = (group_loss(role, phase, players, draw(step, int(group)), settings.game) for group in sampled)
        noisy_step(seats[role], losses, settings.dp, groups, stream)
        on_step()
