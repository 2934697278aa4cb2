"""Noise that nobody can draw again, and that floating point does not betray."""

import os

import numpy as np
import pytest
import torch
from scipy import stats

from spact_models.noise import SecretStream, grid_step

KEY = bytes(range(32))


def test_two_streams_differ_and_a_fixed_key_repeats():
    assert not np.array_equal(SecretStream().normal(8), SecretStream().normal(8))
    assert np.array_equal(SecretStream(KEY).normal(8), SecretStream(KEY).normal(8))


def test_torchs_seed_has_no_part_in_it():
    torch.manual_seed(0)
    first = SecretStream().noised(torch.zeros(8), 1.0)
    torch.manual_seed(0)
    assert not torch.equal(first, SecretStream().noised(torch.zeros(8), 1.0))


def test_it_is_gaussian_and_independent():
    drawn = SecretStream(KEY).normal(200_001)
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    assert stats.kstest(drawn[1::2] + drawn[:-1:2], "norm", args=(0, np.sqrt(2))).pvalue > 1e-3  # neighbours
    half = 1 << 15
    radii = drawn[:half] ** 2 + drawn[half : 2 * half] ** 2  # the two of one pair
    assert stats.kstest(radii, "chi2", args=(2,)).pvalue > 1e-3
    assert abs(stats.norm.sf(drawn.max()) * len(drawn)) > 1e-4  # no heavier tail than 200,001 draws have


def test_a_fork_draws_its_own():
    stream = SecretStream()
    stream.normal(2)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, stream.words(4).tobytes())
        os._exit(0)
    theirs = os.read(reader, 32)
    os.wait()
    assert theirs != stream.words(4).tobytes()


@pytest.mark.parametrize("deviation", [1e-3, 0.7, 40.0])
def test_which_sums_can_occur_does_not_depend_on_the_value(deviation):
    step = grid_step(deviation)
    assert deviation / 2**25 <= step <= deviation / 2**24
    for value in (0.0, 1 / 3, -2.718281828):
        noisy = SecretStream(KEY).noised(torch.full((500,), value, dtype=torch.float64), deviation) / step
        assert torch.equal(noisy, noisy.round())


def test_noise_keeps_shape_type_and_mean():
    value = torch.linspace(-1, 1, 60_000).reshape(3, 100, 200)
    noisy = SecretStream(KEY).noised(value, 0.5)
    assert (noisy.shape, noisy.dtype) == (value.shape, torch.float32)
    assert stats.kstest(((noisy - value) / 0.5).flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.equal(SecretStream(KEY).noised(value, 0.0), value)


def test_poisson_sampling_takes_each_by_itself():
    counts = np.array([SecretStream().chosen(200, 0.3).sum() for _ in range(300)])
    assert abs(counts.mean() - 60) < 5 * np.sqrt(200 * 0.3 * 0.7 / 300)
    assert counts.std() == pytest.approx(np.sqrt(200 * 0.3 * 0.7), rel=0.25)  # a fixed number would have none
    assert SecretStream().chosen(50, 1.0).all()
    assert not SecretStream().chosen(50, 0.0).any()
