"""What dp.* refuses, how many noisy steps a run takes, and what they cost."""

import math

import pytest
from opacus.accountants import RDPAccountant
from scipy import stats

from spact_models.accounting import epsilon_of, epsilon_replacing, schedule_steps, steps_of
from spact_models.dp_settings import DpConfig
from spact_models.errors import UserError
from spact_models.run_config import load_settings

VIDEOS = {"dp.unit": "videos", "strategy.weighting": "equal"}
SITE = {"dp.unit": "site", "strategy.weighting": "equal"}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("unit", "frames", "dp.unit = 'frames', must be one of: none, site, videos"),
        ("clip_norm", 0.0, "dp.clip_norm = 0.0, must be above 0, for example 1.0"),
        ("noise_multiplier", 0.0, "dp.noise_multiplier = 0.0, must be above 0: without noise nothing is private"),
        ("delta", 1.0, "dp.delta = 1.0, must be above 0 and below 1, for example 1e-05"),
        ("epsilon_budget", 0.0, "dp.epsilon_budget = 0.0, must be above 0, for example 8.0"),
        ("group_videos", 0, "dp.group_videos = 0, must be at least 1, for example 4"),
        ("sampling_rate", 1.5, "dp.sampling_rate = 1.5, must be above 0 and at most 1, for example 0.25"),
        ("accountant", "mine", "dp.accountant = 'mine', must be one of: rdp, prv"),
    ],
)
def test_bad_values_name_the_rule_and_one_that_works(key, value, words):
    with pytest.raises(UserError) as error:
        load_settings({f"dp.{key}": value})
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("unit", "more", "words"),
    [
        ("site", {"networks.norm": "batch"}, "networks.norm = 'group'"),
        ("videos", {"networks.norm": "batch"}, "networks.norm = 'group'"),
        ("site", {"strategy.weighting": "examples"}, "strategy.weighting = 'equal'"),
        ("site", {"strategy.aggregation": "median", "rounds.min_sites": 3}, "strategy.aggregation = 'mean'"),
        ("videos", {"rounds.evaluate_every": 1}, "rounds.evaluate_every = 0"),
        ("site", {"wire.dtype": "int8"}, "wire.dtype = 'float16'"),
        ("videos", {"dp.group_videos": 1}, "dp.group_videos = 4"),
        ("videos", {"game.joint_step": True}, "Use game.joint_step = false"),
        ("site", {"dp.delta": 0.01, "rounds.min_sites": 100}, "Use dp.delta = 0.001"),
    ],
)
def test_what_no_guarantee_can_go_with_says_what_to_change(unit, more, words):
    with pytest.raises(UserError) as error:
        load_settings({"strategy.weighting": "equal", "dp.unit": unit, **more})
    assert words in str(error.value)
    load_settings({"strategy.weighting": "equal", "dp.unit": unit})


def test_every_step_of_every_network_counts(fast):
    settings = load_settings({**fast, **VIDEOS})
    assert steps_of(settings, "warmup") == ("anonymizer", "action", "privacy") * 2
    critics = ("action", "privacy")
    assert steps_of(settings, "minimax") == (*critics, "anonymizer", *critics, *critics)  # catch-up, then the cycle
    assert schedule_steps(settings) == [6, 7, 7]


def test_epsilon_is_opacus_own_and_the_published_one():
    one_by_one = RDPAccountant()
    for _ in range(300):
        one_by_one.step(noise_multiplier=1.2, sample_rate=0.05)
    dp = DpConfig("videos", noise_multiplier=1.2, sampling_rate=0.05)
    assert epsilon_of(dp, 300) == pytest.approx(one_by_one.get_epsilon(1e-5), rel=1e-12)
    assert epsilon_of(dp, 0) == 0.0
    # Opacus' own regression value
    opacus = DpConfig("videos", noise_multiplier=1.5, sampling_rate=0.04)
    assert epsilon_of(opacus, 2250) == pytest.approx(7.32911117143)
    # Abadi et al. 2016, section 3.2: q = 0.01, sigma = 4, T = 10000, delta = 1e-5 gives 1.26 by the moments accountant;
    # the conversion to epsilon has since become tighter
    abadi = DpConfig("videos", noise_multiplier=4.0, sampling_rate=0.01)
    assert 0.75 * 1.26 < epsilon_of(abadi, 10_000) < 1.26
    tighter = DpConfig("videos", noise_multiplier=4.0, sampling_rate=0.01, accountant="prv")
    assert 0.7 * 1.26 < epsilon_of(tighter, 10_000) < epsilon_of(abadi, 10_000)


def exact_delta(epsilon: float, multiplier: float, steps: int) -> float:
    """Of ``steps`` Gaussians without sampling: Balle and Wang 2018, Theorem 8."""
    mu = math.sqrt(steps) / multiplier
    phi = stats.norm.cdf
    return float(phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu))


def test_a_bound_is_a_bound_for_add_or_remove_and_for_replacing():
    dp = DpConfig("videos", noise_multiplier=8.0, sampling_rate=1.0)
    assert exact_delta(epsilon_of(dp, 10), 8.0, 10) < dp.delta
    # replacing a group moves the sum by up to 2 C: the Gaussian with half the multiplier
    replaced = epsilon_replacing(dp, 10)
    assert exact_delta(replaced, 4.0, 10) < dp.delta
    assert replaced > 2 * epsilon_of(dp, 10)
