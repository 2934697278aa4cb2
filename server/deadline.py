"""How long a round waits: a fixed time, or one that follows the sites' own past rounds within limits.

Adaptive: ``deadline_factor`` times the slow sites' seconds (the ``deadline_quantile`` of all sites' last rounds of the
same kind and phase), at least ``deadline_least_seconds`` and never above ``timeout_seconds``. A site without a past in
this phase gets ``timeout_seconds``: it may have videos to decode first. A site that was late counts with the time that
was waited for it, so that the next deadline is longer and takes it in if it has only become slower; after
``PATIENCE`` misses in a row it no longer counts, so that a hung site does not hold up the others for ever. It is asked
all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import numpy as np

from server.records import RoundRecord
from spact_models.round_settings import RoundsConfig

REMEMBERED = 5  # rounds a site: older ones were other weather
PATIENCE = 3


class Deadlines:
    """The sites' past seconds, and what follows from them.

    Args:
        config: ``rounds.*``.
    """

    def __init__(self, config: RoundsConfig) -> None:
        self._config = config
        self._seconds: dict[tuple[str, str], dict[str, deque[float]]] = {}  # (kind, phase) -> site -> last rounds
        self._missed: dict[tuple[str, str], dict[str, int]] = {}  # in a row

    def seconds(self, kind: str, phase: str, sites: Iterable[str]) -> float:
        """How long to wait for these sites."""
        config = self._config
        if config.deadline == "fixed":
            return config.timeout_seconds
        past = self._seconds.get((kind, phase), {})
        missed = self._missed.get((kind, phase), {})
        asked = list(sites)
        if any(site not in past and missed.get(site, 0) < PATIENCE for site in asked):
            return config.timeout_seconds
        counted = [value for site in asked if missed.get(site, 0) < PATIENCE for value in past[site]]
        if not counted:  # all of them are silent: whoever comes back shall be heard
            return config.timeout_seconds
        slow = float(np.quantile(counted, config.deadline_quantile, method="higher"))
        return min(config.timeout_seconds, max(config.deadline_least_seconds, config.deadline_factor * slow))

    def learn(self, kind: str, phase: str, replied: Mapping[str, float], late: Iterable[str], waited: float) -> None:
        """Take in a finished round.

        Args:
            kind: ``train`` or ``evaluate``.
            phase: ``warmup`` or ``minimax``.
            replied: site -> seconds from the request to its reply.
            late: sites that did not reply in time.
            waited: the round's deadline.
        """
        past = self._seconds.setdefault((kind, phase), {})
        missed = self._missed.setdefault((kind, phase), {})
        for site, seconds in replied.items():
            past.setdefault(site, deque(maxlen=REMEMBERED)).append(seconds)
            missed[site] = 0
        for site in late:
            missed[site] = missed.get(site, 0) + 1
            if site in past:
                past[site].append(waited)

    def relearn(self, records: Iterable[RoundRecord]) -> None:
        """Take in a resumed run's earlier rounds."""
        for record in records:
            late = [drop.name for drop in record.dropped if drop.late]
            replied = {site.name: site.seconds for site in record.sites if site.seconds > 0}
            self.learn(record.kind, record.phase, replied, late, record.deadline_seconds)
