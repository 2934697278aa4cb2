"""Differential privacy at the site: the clipped update (``dp.unit = site``) and the game by groups (``videos``).

By groups: a site's videos are dealt into groups by a keyed hash of each one's own name, so that adding a video moves no
other. Every step of every network takes a fresh Poisson sample of the groups. Within a group the game is the game of
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
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from client.video.loader import ClipLoader
from client.video.rows import Row
from spact_models.accounting import epsilon_of, steps_of
from spact_models.checkpoint import write_atomically
from spact_models.dp_settings import DpConfig, check_delta
from spact_models.errors import UserError
from spact_models.game_settings import GameConfig
from spact_models.losses import chance_level, reconstruction
from spact_models.minimax import Player, Players, anonymized_views, has_lesson, loss_action, loss_privacy, priced_clips
from spact_models.noise import KEY_BYTES, ROUNDING_HEADROOM, SecretStream
from spact_models.seeds import seed_for, seed_noise
from spact_models.settings import Settings
from spact_models.views import Batch, FrameBatch, augmentation, prepare

KEY_FILE = "group.key"
LEDGER = "privacy.json"
Draw = Callable[[int, int], Batch | None]  # (step of the round, group) -> what the group shows; None: it is empty


def length(update: Mapping[str, Tensor]) -> float:
    """L2 of a whole update, all tensors as one vector."""
    return math.sqrt(sum(float(torch.linalg.vector_norm(value, dtype=torch.float64)) ** 2 for value in update.values()))


def clipped(update: Mapping[str, Tensor], bound: float) -> dict[str, Tensor]:
    """A site's whole update, all tensors as one vector, scaled down to an L2 norm of at most ``bound``.

    An update of zeros stays what it is. One that is not finite becomes zeros: it has nothing to tell, and an error
    in its place would tell something.
    """
    norm = length(update)
    if not math.isfinite(norm):
        return {name: torch.zeros_like(value) for name, value in update.items()}
    scale = min(1.0, bound / norm) if norm > 0 else 1.0
    return {name: value * scale for name, value in update.items()}


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


def site_key(folder: Path) -> bytes:
    """The site's own key, made once; it must stay, for with another key every video changes its group."""
    file = folder / KEY_FILE
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda path: path.write_bytes(os.urandom(KEY_BYTES)))  # mkstemp: for the owner alone
    return file.read_bytes()


class SiteLedger:
    """What one federation has cost this site, charged before the round is played and never taken back.

    A round that is played again is charged again. The number of groups is fixed with the first round.

    Args:
        folder: the site's state of one federation.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / LEDGER
        kept = json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}
        self.steps = int(kept.get("steps", 0))
        self.groups = int(kept.get("groups", 0))
        self._mechanism: dict[str, object] = kept.get("mechanism", {})

    def fix_groups(self, videos: int, dp: DpConfig) -> int:
        """How many groups there are: ``videos / dp.group_videos`` when the site first joins, the same ever after.

        Raises:
            UserError: fewer videos than one group holds, a delta too large for the groups, or other dp.* keys than
                those that were charged so far.
        """
        if dp.group_videos > videos:
            raise UserError(
                f"dp.group_videos = {dp.group_videos}, this site has fewer videos than that; it can take part with a "
                "smaller group, for example dp.group_videos = 2, or not at all"
            )
        mechanism: dict[str, object] = {
            name: getattr(dp, name) for name in ("noise_multiplier", "sampling_rate", "group_videos", "accountant")
        }
        if self._mechanism and self._mechanism != mechanism:
            raise UserError(
                f"this federation began with {self._mechanism}, now it asks for {mechanism}; what was spent cannot be "
                "added to another mechanism: set those keys of dp.* back, or begin a new run"
            )
        self._mechanism = mechanism
        self.groups = self.groups or videos // dp.group_videos
        check_delta(dp.delta, self.groups, "groups of this site")
        return self.groups

    def charge(self, dp: DpConfig, steps: int) -> float:
        """Add a round's noisy steps; returns epsilon with them.

        Raises:
            UserError: it would be more than the budget; nothing is charged and nothing may be played.
        """
        epsilon = epsilon_of(dp, self.steps + steps)
        if epsilon > dp.epsilon_budget:
            raise UserError(
                f"this round would take the site's epsilon to {epsilon:.4g} at delta = {dp.delta:g}, above "
                f"dp.epsilon_budget = {dp.epsilon_budget:g}; it is not played"
            )
        self.steps += steps
        kept = {"steps": self.steps, "groups": self.groups, "mechanism": self._mechanism, "epsilon": epsilon}
        text = json.dumps({**kept, "delta": dp.delta}, indent=2, sort_keys=True) + "\n"
        write_atomically(self._file, lambda path: path.write_text(text, encoding="utf-8"))
        return epsilon


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

    def rows_of(self, rows: Sequence[Row], group: int) -> list[Row]:
        return [row for row in rows if group_of(self.key, os.path.relpath(row.path, self.root), self.groups) == group]

    def draw(self, step: int, group: int) -> Batch | None:
        """One clip of each of the group's videos and one pair of views, at most a batch of each."""
        own = seed_for("group", self.seed, step, group)
        rng = np.random.default_rng(own)
        clips = _some(self.rows_of(self.loader.rows, group), self.settings.batch.clips, rng)
        views = _some(self.rows_of(self.loader.view_rows, group), self.settings.batch.views, rng)
        if not clips and not views:
            return None
        seed_noise("noise", own)  # f_A's output noise
        frames = self.loader.batch_of(clips, views, rng).to(self.device)
        if self.settings.views.source == "image":
            frames = FrameBatch(frames.clips_BTHWC, frames.labels_B, frames.first_NTHWC, frames.first_NTHWC)
        augment = augmentation(self.settings.augment)
        return prepare(frames, augment, torch.Generator().manual_seed(seed_for("augment", own)))


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
    """What one group tells the network ``role``: the game's loss over the group alone; None: nothing."""
    if batch is None:
        return None
    clips, pairs = len(batch.clips_BCTHW) > 0, len(batch.first_NCTHW) > 1  # a pair needs another to differ from
    lesson = clips and has_lesson(players, batch)
    with torch.set_grad_enabled(role == "anonymizer"), players.autocast(batch.clips_BCTHW.device):
        shown_BCTHW, price = priced_clips(players.f_A, batch, config) if clips else (None, 0.0)
        views = anonymized_views(players.f_A, batch) if pairs and (role, phase) != ("anonymizer", "warmup") else None
    if role == "anonymizer" and phase == "warmup":
        return None if shown_BCTHW is None else reconstruction(shown_BCTHW, players.f_A.target(batch.clips_BCTHW))
    if role == "action":
        return loss_action(players, shown_BCTHW, batch) if lesson and shown_BCTHW is not None else None
    if role == "privacy":
        return None if views is None else loss_privacy(players, *views, config)
    parts: list[Tensor] = []
    if shown_BCTHW is not None:
        parts.append(loss_action(players, shown_BCTHW, batch) + price)
    if views is not None:
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
