"""Noise and epsilon at the server: charged and on the disk before anything is released, stopped before the budget is.

``dp.unit = site``: each site clips its whole update, the server adds the noise (that it does is what sites must trust
it for; dp.unit = videos asks for no such trust). ``dp.unit = videos``: the sites have added theirs, and the server
only counts what a round costs each of them.

The ledger stands in the run folder (``privacy.json``). A round that is played again after a crash is charged again:
its noise is another draw, and both may have been seen.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from server.clipping import AdaptiveClip
from spact_models.accounting import MISSING, epsilon_of, epsilon_replacing, schedule_steps, steps_of, told
from spact_models.dp_settings import DpConfig, check_delta
from spact_models.errors import RunStopped, UserError
from spact_models.files import write_file
from spact_models.noise import ROUNDING_HEADROOM, SecretStream
from spact_models.settings import Settings

if TYPE_CHECKING:
    from flwr.serverapp import RdpAccountant

LOG = logging.getLogger("fedspact.server")
LEDGER = "privacy.json"
FORMAT = "fedspact-privacy"


class Costs(Protocol):
    """What rounds cost, by somebody else's accountant."""

    def after(self, server_round: int) -> float:
        """Epsilon when one more release, that of this round, is added."""

    def charge(self, server_round: int) -> None:
        """Add it."""

    def told(self) -> dict[str, object]:
        """The guarantee so far, in words and numbers."""

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


class SiteCosts:
    """One Gaussian release a round, every site in it (no sampling, no amplification): Flower's RdpAccountant.

    The neighbour of a federation is the same federation with one site's update set to zero. Who takes part is known to
    the server and is not protected.
    """

    def __init__(self, dp: DpConfig) -> None:
        self._dp = dp
        self._accountant = _flower_accountant(dp)

    def after(self, server_round: int) -> float:  # noqa: ARG002 (every round costs the same)
        ahead = _flower_accountant(self._dp)
        ahead.load_state_dict(self._accountant.state_dict())
        ahead.compose(_release(self._dp))
        return float(ahead.get_epsilon(self._dp.delta))

    def charge(self, server_round: int) -> None:  # noqa: ARG002
        self._accountant.compose(_release(self._dp))

    def told(self) -> dict[str, object]:
        releases = self._accountant.num_releases
        return {
            "epsilon": round(self._accountant.get_epsilon(self._dp.delta), 6) if releases else 0.0,
            "delta": self._dp.delta,
            "unit": "a site, with all its videos",
            "adjacency": "one site's update, or zero in its place",
            "sampling": "none: every connected site is asked in every round",
            "accountant": "Flower RdpAccountant",
            "noise_multiplier": self._dp.noise_multiplier,
            "clip_norm": self._dp.clip_norm,
            "releases": releases,
        }

    def state(self) -> dict[str, Any]:
        return {"flower": self._accountant.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self._accountant.load_state_dict(state["flower"])


class VideoCosts:
    """All noisy steps of a round, as the settings fix them: the same for every site."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._steps = 0

    def _of(self, server_round: int) -> int:
        return len(steps_of(self._settings, self._settings.phase(server_round)))

    def after(self, server_round: int) -> float:
        return epsilon_of(self._settings.dp, self._steps + self._of(server_round))

    def charge(self, server_round: int) -> None:
        self._steps += self._of(server_round)

    def told(self) -> dict[str, object]:
        return dict(told(self._settings.dp, self._steps))

    def state(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load(self, state: dict[str, Any]) -> None:
        self._steps = int(state["steps"])


class Budget:
    """What a run has spent and may still spend.

    Args:
        settings: the run's, with ``dp.unit`` not "none".
        folder: the run folder; a ledger that is there already is gone on with. None: nothing is kept (tests).
        stream: of the noise; None: the operating system's. A fixed one is for tests alone.

    Raises:
        UserError: the accountant's package is missing, or the ledger is of another kind of guarantee.
    """

    def __init__(self, settings: Settings, folder: Path | None, stream: SecretStream | None = None) -> None:
        self._dp = settings.dp
        self._file = None if folder is None else folder / LEDGER
        self._stream = stream or SecretStream()
        self._costs: Costs = SiteCosts(settings.dp) if settings.dp.unit == "site" else VideoCosts(settings)
        self._clip = AdaptiveClip(settings.dp) if settings.dp.adaptive_quantile > 0 else None
        self._entries: list[dict[str, object]] = []
        if self._file is not None and self._file.exists():
            self._load(self._file)

    def open_round(self, server_round: int) -> None:
        """Before the sites train. ``videos``: what they will send is charged now, for it costs as soon as it leaves.

        Raises:
            RunStopped: the round would take more than the budget; nobody has trained for it.
        """
        ahead = self._costs.after(server_round)
        if ahead > self._dp.epsilon_budget:
            spent = self._costs.told()
            raise RunStopped(
                f"round {server_round} would take epsilon from {spent['epsilon']:g} to {ahead:.4g} at delta = "
                f"{self._dp.delta:g}, above dp.epsilon_budget = {self._dp.epsilon_budget:g}. It is not begun; the "
                f"weights are those after {spent['releases']} releases. More rounds need a larger dp.noise_multiplier "
                "from the start, or a larger budget."
            )
        if self._dp.unit == "videos":
            self._charge(server_round)

    @property
    def clip_norm(self) -> float:
        """What the open round's updates are clipped to."""
        return self._dp.clip_norm if self._clip is None else self._clip.norm

    def release(
        self, server_round: int, mean: Mapping[str, Tensor], sites: int, within: int | None = None
    ) -> dict[str, Tensor]:
        """The sites' mean as it may be released. ``site``: charged, on the disk, then noised with z C / n.

        Args:
            mean: of ``sites`` clipped updates that weigh 1 each, by wire name.
            sites: how many; a count that is known to the server anyway.
            within: how many of them were no longer than the clip norm; an adaptive one follows it, for the next round.
        """
        if self._dp.unit == "videos":
            return dict(mean)
        self._charge(server_round)
        multiplier = self._dp.noise_multiplier if self._clip is None else self._clip.update_multiplier(sites)
        deviation = multiplier * self.clip_norm * (1 + ROUNDING_HEADROOM) / sites
        released = {name: self._stream.noised(value, deviation) for name, value in mean.items()}
        if self._clip is not None:
            if within is None:
                raise ValueError("an adaptive clip norm, and nobody counted whose update was within it")
            before, after = self.clip_norm, self._clip.follow(within, sites, self._stream)
            LOG.info("round %d: the clip norm goes from %.4g to %.4g", server_round, before, after)
            self._keep()
        return released

    def check_sites(self, sites: int) -> None:
        """UserError when delta is too large for so many sites."""
        if self._dp.unit == "site":
            check_delta(self._dp.delta, sites, "connected sites")

    def told(self) -> dict[str, object]:
        """For the summary and the report."""
        told = {**self._costs.told(), "epsilon_budget": self._dp.epsilon_budget}
        if self._clip is not None:
            told |= {"clip_norm": round(self._clip.norm, 6), "adaptive_quantile": self._dp.adaptive_quantile}
        return told

    @property
    def epsilon(self) -> float:
        """Spent so far."""
        return float(str(self._costs.told()["epsilon"]))

    def _charge(self, server_round: int) -> None:
        self._costs.charge(server_round)
        spent = self.epsilon
        self._entries.append({"round": server_round, "epsilon": spent})
        LOG.info("round %d: epsilon %.4g of %g, delta %g", server_round, spent, self._dp.epsilon_budget, self._dp.delta)
        self._keep()

    def _keep(self) -> None:
        if self._file is None:
            return
        content = {
            "format": FORMAT,
            "told": self.told(),
            "charged": self._entries,
            "mechanism": _mechanism(self._dp),
            "state": {**self._costs.state(), **({} if self._clip is None else {"clip_norm": self._clip.norm})},
        }
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        write_file(self._file, text, "nothing of the round is released. Free that disk, then go on with the run.")

    def _load(self, file: Path) -> None:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            kept, entries, state = content["mechanism"], list(content["charged"]), content["state"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}: cannot be read ({error}). Without it nobody knows what the run has spent; restore it, or "
                "begin a new run."
            ) from None
        if kept != _mechanism(self._dp):
            raise UserError(
                f"{file}: the run began with {kept}, the settings say {_mechanism(self._dp)}. What was spent cannot be "
                "added to another mechanism: set those keys of dp.* back, or begin a new run."
            )
        self._costs.load(state)
        if self._clip is not None:
            self._clip.norm = float(state["clip_norm"])
        self._entries = entries


def open_budget(settings: Settings, folder: Path | None) -> Budget | None:
    """The run's budget; None without differential privacy."""
    return Budget(settings, folder) if settings.dp.on else None


def privacy_spent(folder: Path) -> dict[str, object]:
    """``{"privacy": ...}`` of a run folder as its summary tells it; empty without differential privacy."""
    file = folder / LEDGER
    if not file.exists():
        return {}
    return {"privacy": json.loads(file.read_text(encoding="utf-8"))["told"]}


def schedule_costs(settings: Settings) -> list[float]:
    """Epsilon after each round of the whole schedule, void rounds left aside: what ``fedspact check`` tells.

    Raises:
        UserError: the accountant's package is missing.
    """
    dp = settings.dp
    if dp.unit == "videos":
        spent = [sum(schedule_steps(settings)[:number]) for number in range(1, settings.total_rounds + 1)]
        return [epsilon_of(dp, steps) for steps in spent]
    out, accountant = [], _flower_accountant(dp)
    for _ in range(settings.total_rounds):
        accountant.compose(_release(dp))
        out.append(float(accountant.get_epsilon(dp.delta)))
    return out


def forecast(settings: Settings) -> list[str]:
    """The schedule's price in sentences, for ``fedspact check``."""
    if not settings.dp.on:
        return []
    dp, costs = settings.dp, schedule_costs(settings)
    about = (SiteCosts(dp) if dp.unit == "site" else VideoCosts(settings)).told()
    guarantee = f"{about['adjacency']}; sampling: {about['sampling']}; {about['accountant']}"
    lines = [
        f"differential privacy of {about['unit']}: all {len(costs)} rounds cost epsilon = {costs[-1]:.4g} at delta = "
        f"{dp.delta:g} ({guarantee})"
    ]
    if dp.unit == "videos":
        replacing = epsilon_replacing(dp, sum(schedule_steps(settings)))
        lines.append(f"one changed video (its group replaced): epsilon = {replacing:.4g} at the same delta")
    over = [number for number, epsilon in enumerate(costs, start=1) if epsilon > dp.epsilon_budget]
    if over:
        lines.append(f"dp.epsilon_budget = {dp.epsilon_budget:g}: the run will stop before round {over[0]}")
    return lines


def _mechanism(dp: DpConfig) -> dict[str, object]:
    named = ["unit", "clip_norm", "noise_multiplier", "delta"]
    named += ["adaptive_quantile", "adaptive_rate"] if dp.adaptive_quantile > 0 else []
    named += ["group_videos", "sampling_rate", "accountant"] if dp.unit == "videos" else []
    return {name: getattr(dp, name) for name in named}


def _flower_accountant(dp: DpConfig) -> RdpAccountant:
    from flwr.serverapp import NeighboringRelation, PrivacyConfig, RdpAccountant, SamplingMethod

    # Without amplification the sizes are not read; they are 1 so that sites may come and go.
    config = PrivacyConfig(dp.delta, 1, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION)
    try:
        return RdpAccountant(config)
    except ImportError:
        raise UserError(MISSING.format(package="dp-accounting", remedy="pip install 'flwr[dp]'")) from None


def _release(dp: DpConfig) -> Any:
    from flwr.serverapp import GaussianPrivacyEvent

    return GaussianPrivacyEvent(dp.noise_multiplier, 1, 1)
