"""Attacks on our own mechanism: what they find stays below what is claimed, and a broken mechanism is found out."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from server.budget import Budget, schedule_costs
from spact_models.exchange import clipped
from spact_models.noise import ROUNDING_HEADROOM, SecretStream
from spact_models.run_config import load_settings

SITE = {"dp.unit": "site", "strategy.weighting": "equal", "rounds.warmup": 0, "rounds.minimax": 1}
TRIALS = 1_000_000


def epsilon_from_below(seen_with, seen_without, delta, confidence=0.999):
    """The largest epsilon that a threshold on what was seen proves (Clopper-Pearson on both error rates).

    (e, d) would allow no more than TPR <= exp(e) FPR + d (Kairouz et al. 2015; Jagielski et al. 2020 count so).
    """
    best = 0.0
    for threshold in np.quantile(seen_without, [0.5, 0.9, 0.99, 0.999, 0.9999]):
        hits, alarms = int((seen_with > threshold).sum()), int((seen_without > threshold).sum())
        true_low = stats.beta.ppf(1 - confidence, hits, TRIALS - hits + 1) if hits else 0.0
        false_high = stats.beta.ppf(confidence, alarms + 1, TRIALS - alarms)
        if true_low > delta:
            best = max(best, math.log((true_low - delta) / false_high))
    return best


def canary(multiplier, bound=0.5):
    """What the sum shows with and without one site that pushes as far as it can; one coordinate a trial."""
    push = float(clipped({"w": torch.tensor([1e6])}, bound)["w"])
    deviation = multiplier * bound * (1 + ROUNDING_HEADROOM)
    stream = SecretStream()
    return tuple(stream.noised(torch.full((TRIALS,), value), deviation).numpy() for value in (push, 0.0))


@pytest.mark.parametrize("multiplier", [0.7, 1.0, 2.0])
def test_a_canary_proves_less_than_is_claimed(multiplier):
    (claimed,) = schedule_costs(load_settings({**SITE, "dp.noise_multiplier": multiplier}))
    proved = epsilon_from_below(*canary(multiplier), delta=1e-5)
    assert 0.4 * claimed < proved <= claimed  # the attack is a real one, and the bound holds


def test_half_the_noise_is_found_out():
    (claimed,) = schedule_costs(load_settings({**SITE, "dp.noise_multiplier": 1.0}))
    assert epsilon_from_below(*canary(0.5), delta=1e-5) > claimed


def picture_from(update):
    """One example's input from the step of a linear layer: weight's row over bias (Phong et al. 2017, section 3)."""
    row = int(update["bias"].abs().argmax())
    return update["weight"][row] / update["bias"][row]


def likeness(picture, restored):
    return abs(float(np.corrcoef(picture.numpy(), restored.numpy())[0, 1]))


@pytest.fixture(scope="module")
def step():
    """A picture, and the update that one step of SGD on it alone leaves."""
    torch.manual_seed(0)
    picture = torch.rand(3 * 16 * 16)
    layer = nn.Linear(len(picture), 10)
    functional.cross_entropy(layer(picture[None]), torch.tensor([3])).backward()
    return picture, {name: -0.1 * parameter.grad for name, parameter in layer.named_parameters()}


def test_batch_1_is_restored_from_a_plain_update_and_clipping_alone_does_not_help(step):
    picture, update = step
    assert likeness(picture, picture_from(update)) > 0.999
    assert likeness(picture, picture_from(clipped(update, 1e-3))) > 0.999  # a scaled picture is the same picture


def test_the_servers_noise_ends_it(step):
    picture, update = step
    settings = load_settings({**SITE, "dp.clip_norm": 0.1, "dp.noise_multiplier": 1.0})
    released = Budget(settings, None).release(1, clipped(update, 0.1), sites=1)
    assert likeness(picture, picture_from(released)) < 0.2
