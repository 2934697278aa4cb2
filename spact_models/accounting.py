"""How many noisy steps a run of ``dp.unit = videos`` takes, and what they cost, by Opacus' accountants.

The steps follow from the settings alone. None of them may depend on a video: a step that is left out, or done, because
of what the data hold would tell that.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

from spact_models.dp_settings import DpConfig
from spact_models.errors import UserError
from spact_models.settings import Settings

MISSING = "the package {package} is not installed, and without its accountant no epsilon can be told. {remedy}"


def steps_of(settings: Settings, phase: str) -> tuple[str, ...]:
    """The networks that one round of a phase steps, in order; each takes its own Poisson sample and its own noise.

    Warm-up: all three a step. Minimax: the critics catch up, then cycles of the anonymizer's move and the critics'.
    """
    game = settings.game
    critics = ("action", "privacy")
    if phase == "warmup":
        return ("anonymizer", *critics) * settings.warmup.steps
    cycle = ("anonymizer", *critics * game.critic_steps)
    return critics * game.catch_up_steps + cycle * settings.rounds.cycles


def epsilon_of(dp: DpConfig, steps: int, delta: float | None = None) -> float:
    """Epsilon of ``steps`` Poisson-sampled Gaussian steps; adding or removing one group, by Opacus.

    Raises:
        UserError: Opacus is not installed.
    """
    if steps == 0:
        return 0.0
    try:
        from opacus.accountants import create_accountant
    except ImportError:
        raise UserError(MISSING.format(package="opacus", remedy="pip install opacus")) from None
    accountant = create_accountant(dp.accountant)
    accountant.history = [(dp.noise_multiplier, dp.sampling_rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the best order is the last one listed: the bound holds all the same
        epsilon = float(accountant.get_epsilon(delta=dp.delta if delta is None else delta))
    return epsilon if math.isfinite(epsilon) else math.inf


def epsilon_replacing(dp: DpConfig, steps: int) -> float:
    """Epsilon of replacing one group's videos by any others: what one changed video of a group can tell.

    Dwork and Roth 2014, Theorem 2.2 and its remark: removing a group and adding another are two neighbours' steps, and
    two steps of (e, d) are (2 e, (1 + exp e) d). d is made small enough for the sum to be ``dp.delta``.
    """
    delta = dp.delta
    for _ in range(60):
        epsilon = epsilon_of(dp, steps, delta)
        if not math.isfinite(epsilon) or epsilon > 300:  # exp would leave float64's range; such an epsilon says nothing
            return math.inf
        if (1.0 + math.exp(epsilon)) * delta <= dp.delta:
            return 2.0 * epsilon
        delta = 0.9 * dp.delta / (1.0 + math.exp(epsilon))
    return math.inf


def schedule_steps(settings: Settings) -> list[int]:
    """Noisy steps of each round, in order."""
    return [len(steps_of(settings, settings.phase(number))) for number in range(1, settings.total_rounds + 1)]


def told(dp: DpConfig, steps: int) -> Mapping[str, object]:
    """The guarantee in words and numbers; an epsilon without them says nothing."""
    return {
        "epsilon": round(epsilon_of(dp, steps), 6),
        "delta": dp.delta,
        "unit": f"a group of about {dp.group_videos} videos of one site",
        "adjacency": "add or remove one group",
        "sampling": f"Poisson, rate {dp.sampling_rate:g}, a fresh sample for each step of each network",
        "accountant": f"Opacus {dp.accountant}",
        "noise_multiplier": dp.noise_multiplier,
        "clip_norm": dp.clip_norm,
        "releases": steps,
    }
