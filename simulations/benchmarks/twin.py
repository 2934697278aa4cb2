"""The twin of the game's step: what the published reference does, written plainly.

Float32, contiguous memory, gradients through every network whoever moves, each view forward by itself, Adam unfused.
The numbers are the same as ours; only the work differs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spact_models.game_settings import GameConfig
from spact_models.losses import nt_xent
from spact_models.networks import Networks
from spact_models.views import Batch


class PlainGame:
    """Three networks, three optimizers, and the two moves of the paper."""

    def __init__(self, networks: Networks, privacy: nn.Module, config: GameConfig) -> None:
        self.f_A, self.f_T, self.f_B, self.config = networks.anonymizer, networks.action, privacy, config
        rates = (config.lr_anonymizer, config.lr_action, config.lr_privacy)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=rate, foreach=False, fused=False)
            for network, rate in zip((self.f_A, self.f_T, self.f_B), rates, strict=True)
        ]

    def pair(self, batch: Batch) -> tuple[float, float]:
        """The anonymizer's move, then the critics'; returns what the critics saw: L_T and L_B."""
        loss_T, loss_B = self._losses(batch)
        self._step((loss_T - self.config.omega * loss_B), (0,))
        loss_T, loss_B = self._losses(batch)
        self._step(loss_T + loss_B, (1, 2))
        return float(loss_T.detach()), float(loss_B.detach())

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss_T = functional.cross_entropy(self.f_T(self.f_A.transform(batch.clips_BCTHW)), batch.labels_B)
        first_ND = self.f_B(self.f_A.transform(batch.first_NCTHW))
        second_ND = self.f_B(self.f_A.transform(batch.second_NCTHW))
        return loss_T, nt_xent(first_ND, second_ND, self.config.temperature)

    def _step(self, loss: Tensor, movers: tuple[int, ...]) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # through all three networks
        for place in movers:
            self.optimizers[place].step()
