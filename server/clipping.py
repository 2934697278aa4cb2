"""A clip norm that follows the sites' updates (Andrew et al. 2021, "Differentially Private Learning with Adaptive
Clipping"): too short cuts what they say, too long only makes the noise larger.

Each site tells whether its update was within the norm. The server adds noise to the count, and moves the norm by a
geometric step towards that quantile of the updates' lengths which the settings name. The count costs privacy too; the
noise on the update is made a little larger, so that both together cost what ``dp.noise_multiplier`` says.
"""

from __future__ import annotations

import math

from spact_models.dp_settings import DpConfig
from spact_models.noise import SecretStream

COUNT_SHARE = 20.0  # the count's noise is the number of sites over this, as in the paper


class AdaptiveClip:
    """The current norm, and how a round moves it.

    Args:
        dp: ``clip_norm`` is where it begins; ``adaptive_quantile`` where it goes.
    """

    def __init__(self, dp: DpConfig) -> None:
        self._dp = dp
        self.norm = dp.clip_norm

    def count_deviation(self, sites: int) -> float:
        """Standard deviation of the noise on the count; never below z, so that the update's share stays bounded."""
        return max(sites / COUNT_SHARE, self._dp.noise_multiplier)

    def update_multiplier(self, sites: int) -> float:
        """z of the update, such that update and count together cost one release at ``dp.noise_multiplier``.

        The paper's equation: z_update = (z^-2 - (2 s)^-2)^(-1/2), s the count's deviation: a site moves the count of
        ``b - 1/2`` by at most one half.
        """
        z, deviation = self._dp.noise_multiplier, self.count_deviation(sites)
        return float((z**-2 - (2 * deviation) ** -2) ** -0.5)

    def follow(self, within: int, sites: int, stream: SecretStream) -> float:
        """After a round in which ``within`` of ``sites`` updates were no longer than the norm; returns the new one."""
        centred = within - sites / 2
        noisy = centred + float(stream.normal(1)[0]) * self.count_deviation(sites)
        share = noisy / sites + 0.5
        self.norm *= math.exp(-self._dp.adaptive_rate * (share - self._dp.adaptive_quantile))
        return self.norm
