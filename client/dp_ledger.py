"""What a site must keep of differential privacy by groups: the key that deals the groups, and the epsilon spent."""

from __future__ import annotations

import json
import os
from pathlib import Path

from spact_models.accounting import epsilon_of
from spact_models.dp_settings import DpConfig, check_delta
from spact_models.errors import UserError
from spact_models.files import OWNER_ALONE, write_file
from spact_models.noise import KEY_BYTES

KEY_FILE = "group.key"
LEDGER = "privacy.json"
REMEDY = "free that disk or set `state` in site.yaml"


def site_key(folder: Path) -> bytes:
    """The site's own key, made once; it must stay, for with another key every video changes its group."""
    file = folder / KEY_FILE
    if not file.exists():
        write_file(file, os.urandom(KEY_BYTES), REMEDY, mode=OWNER_ALONE)
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
        write_file(self._file, text, REMEDY)
        return epsilon
