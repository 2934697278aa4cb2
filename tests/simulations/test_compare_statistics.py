"""Differences between arms: paired, against a slow bootstrap, and verdicts that follow from the interval alone."""

import random
from dataclasses import replace

import numpy as np
import pytest

from simulations.compare.statistics import LEAKAGE_MARGIN, UTILITY_MARGIN, compare_hits


def draw(rate, seeds, videos, rng):
    return (rng.random((seeds, videos)) < rate).astype(np.float64)


def test_an_arm_against_itself_differs_by_exactly_nothing():
    hits = draw(0.7, 3, 200, np.random.default_rng(0))
    for better in (True, False):
        same = compare_hits(hits, hits, UTILITY_MARGIN, more_is_better=better)
        assert (same.difference, same.low, same.high, set(same.per_seed)) == (0.0, 0.0, 0.0, {0.0})
        assert same.holds is True  # not worse than itself
        assert compare_hits(hits, hits, 0.0, more_is_better=better).holds is False  # and not ahead of itself


def test_the_interval_is_that_of_a_slow_bootstrap_which_draws_videos_for_both_arms_at_once():
    rng = np.random.default_rng(1)
    easy = rng.random(80)
    theirs = (rng.random((2, 80)) < easy).astype(np.float64)
    ours = np.where(rng.random((2, 80)) < 0.15, 1 - theirs, theirs)  # the same hard videos are hard for both
    found = compare_hits(ours, theirs, 0.0, more_is_better=True)
    slow, dice = [], random.Random(2)
    for _ in range(2000):
        drawn = [dice.randrange(80) for _ in range(80)]
        mine = sum(ours[seed][video] for seed in (0, 1) for video in drawn) / 160
        yours = sum(theirs[seed][video] for seed in (0, 1) for video in drawn) / 160
        slow.append(mine - yours)
    slow.sort()
    assert found.difference == pytest.approx(ours.mean() - theirs.mean())
    assert found.low == pytest.approx(slow[50], abs=0.012)
    assert found.high == pytest.approx(slow[1949], abs=0.012)
    assert found.per_seed == pytest.approx([ours[s].mean() - theirs[s].mean() for s in (0, 1)])
    loose = 2 * 1.96 * (ours.mean(0).var() / 80 + theirs.mean(0).var() / 80) ** 0.5  # as if they were not paired
    assert found.high - found.low < 0.8 * loose


@pytest.mark.parametrize(
    ("ours", "theirs", "margin", "better", "holds"),
    [
        (0.95, 0.95, UTILITY_MARGIN, True, True),
        (0.80, 0.95, UTILITY_MARGIN, True, False),
        (0.15, 0.15, LEAKAGE_MARGIN, False, True),
        (0.15, 0.30, LEAKAGE_MARGIN, False, True),
        (0.30, 0.15, LEAKAGE_MARGIN, False, False),
        (0.95, 0.80, 0.0, True, True),
        (0.80, 0.95, 0.0, True, False),
        (0.10, 0.30, 0.0, False, True),
    ],
)
def test_verdicts_where_there_is_plenty_of_evidence(ours, theirs, margin, better, holds):
    rng = np.random.default_rng(3)
    draws = rng.random((3, 1000))
    assert compare_hits((draws < ours) * 1.0, (draws < theirs) * 1.0, margin, better).holds is holds


def test_too_few_videos_leave_it_undecided():
    rng = np.random.default_rng(4)
    found = compare_hits(draw(0.9, 1, 40, rng), draw(0.9, 1, 40, rng), UTILITY_MARGIN, True)
    assert found.low < -UTILITY_MARGIN < found.high
    assert found.holds is None
    assert found.to_json()["verdict"] == "undecided"


def test_answers_to_other_questions_are_not_paired():
    with pytest.raises(ValueError, match="cannot be paired"):
        compare_hits(np.zeros((2, 5)), np.zeros((3, 5)), 0.0, True)


@pytest.mark.parametrize(("learned", "told"), [(0.4, "holds, by lower bounds"), (0.9, "holds"), (None, "holds")])
def test_what_holds_by_networks_that_had_not_learned_holds_by_lower_bounds(learned, told):
    hits = draw(0.7, 3, 200, np.random.default_rng(0))
    found = replace(compare_hits(hits, hits, LEAKAGE_MARGIN, more_is_better=False), learned=learned)
    assert (found.holds, found.verdict) == (True, told)
    assert found.to_json()["learned"] == learned
    assert found.to_json()["verdict"] == told
    worse = replace(compare_hits(hits, hits, 0.0, more_is_better=False), learned=learned)
    assert worse.verdict == "does not hold"
