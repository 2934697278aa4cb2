"""Epsilon from below: canaries in the real mechanism, counted in one run (Steinke, Nasr and Jagielski 2023).

A canary is the worst unit there can be: a group of videos (or a site) whose clipped gradient is C along a coordinate
of its own. Each takes part with probability 1/2; the attacker sees every noisy step (or release) and guesses who did.
More right guesses than (e, d)-differential privacy allows prove that the mechanism gives less than e. The steps are
those of the training: Opacus' optimizer with our noise (or the server's own release), the run's sampling and schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import nn

from client.dp import noisy_step
from server.budget import Budget
from spact_models.dp_settings import DpConfig
from spact_models.minimax import Player
from spact_models.noise import SecretStream
from spact_models.settings import Settings

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Proof:
    """What the guesses prove."""

    epsilon: float  # a mechanism with less is refuted, at 95 % confidence
    guesses: int
    right: int


def scores_videos(
    dp: DpConfig,
    steps: int,
    taken_M: np.ndarray,
    stream: SecretStream,
    on_step: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """Each canary group's coordinate, added up over the noisy steps of ``client/dp.py``."""
    network = nn.ParameterList([nn.Parameter(torch.zeros(len(taken_M)))])
    before = network[0].detach().clone()
    player = Player(network, torch.optim.SGD(network.parameters(), lr=1.0))
    members = np.flatnonzero(taken_M)
    for _ in range(steps):
        sampled = members[stream.chosen(len(members), dp.sampling_rate)]
        losses = [-1e6 * network[0][int(group)] for group in sampled]  # clipped to C, whatever it wants
        noisy_step(player, losses, dp, len(members), stream)
        on_step()
    out: np.ndarray = (network[0].detach() - before).double().numpy()
    return out


def scores_sites(settings: Settings, releases: int, taken_M: np.ndarray) -> np.ndarray:
    """Each canary site's coordinate, added up over the server's releases of the mean of those that take part."""
    budget = Budget(settings, None)
    sites = int(taken_M.sum())
    mean = {"w": torch.from_numpy(taken_M.astype(np.float32)) * settings.dp.clip_norm / sites}
    total = np.zeros(len(taken_M))
    for number in range(1, releases + 1):
        total += budget.release(number, mean, sites)["w"].double().numpy()
    return total


def proved(scores_M: np.ndarray, taken_M: np.ndarray, delta: float) -> Proof:
    """The largest epsilon that some number of guesses refutes: the surest ones at either end.

    Several numbers of guesses are tried, and the confidence is shared among them.
    """
    order = np.argsort(scores_M)
    count = len(order)
    tried = sorted({max(1, int(count * share)) for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.35)})
    chance = (1 - CONFIDENCE) / len(tried)
    best = Proof(0.0, 0, 0)
    for each in tried:
        right = int((~taken_M[order[:each]]).sum() + taken_M[order[-each:]].sum())
        epsilon = refuted(count, 2 * each, right, delta, chance)
        if epsilon > best.epsilon:
            best = Proof(epsilon, 2 * each, right)
    return best


def likelihood(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """How likely so many right guesses can be at most under (e, d)-differential privacy (Steinke et al., 5.2).

    With delta 0: at least ``right`` of ``guesses`` coins that fall right with e^eps / (1 + e^eps).
    """
    coin = 1 / (1 + math.exp(-epsilon))
    tail = float(stats.binom.sf(right - 1, guesses, coin))
    steps = np.arange(1, right + 1)
    nearby = np.cumsum(stats.binom.pmf(right - steps, guesses, coin)) / steps
    return min(1.0, tail + 2 * canaries * delta * float(nearby.max(initial=0.0)))


def refuted(canaries: int, guesses: int, right: int, delta: float, chance: float) -> float:
    """The largest epsilon under which so many right guesses are less likely than ``chance``; 0: none."""
    if likelihood(canaries, guesses, right, 0.0, delta) > chance:
        return 0.0
    low, high = 0.0, 60.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if likelihood(canaries, guesses, right, middle, delta) <= chance else (low, middle)
    return low
