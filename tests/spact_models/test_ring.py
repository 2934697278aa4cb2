"""Fixed point and masks: exact, unbiased, and nothing left of a value under a mask."""

import math

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st

from spact_models.noise import SecretStream
from spact_models.ring import PIECE, FixedPoint, MaskStream, encoded_update, mask


def stream(number=0):
    return SecretStream(bytes([number]) * 32)


@given(st.floats(1e-3, 1e3), st.integers(1, 5000), st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_a_value_comes_back_to_less_than_a_step_and_clipped(bound, members, shares):
    grid = FixedPoint(bound, members)
    value = torch.tensor(shares, dtype=torch.float64) * bound
    back = grid.decoded(grid.encoded(value, stream()))
    assert float((back - value.clamp(-bound, bound)).abs().max()) < grid.step
    assert math.log2(grid.step) == int(math.log2(grid.step))  # a power of two: only rounding loses anything


@pytest.mark.parametrize("members", [1, 3, 16, 1000])
def test_the_largest_sum_fits_and_the_step_is_as_fine_as_that_allows(members):
    grid = FixedPoint(1.0, members)
    top = torch.ones(4, dtype=torch.float64)
    total = np.zeros(4, np.uint32)
    for sign in (1, -1):
        total[:] = 0
        for _ in range(members):
            total += grid.encoded(sign * top, stream())
        assert torch.equal(grid.decoded(total), sign * members * top)
        assert grid.possible(total, members)
    assert 2**29 < members / grid.step <= 2**30


def test_rounding_is_unbiased_and_goes_to_a_neighbour():
    grid = FixedPoint(2.0**20, 1)  # a coarse step: 2^-10
    value = torch.full((200_000,), 0.3 * grid.step, dtype=torch.float64)
    drawn = grid.decoded(grid.encoded(value, stream())) / grid.step
    assert set(drawn.tolist()) == {0.0, 1.0}
    assert abs(float(drawn.mean()) - 0.3) < 5 * math.sqrt(0.21 / 200_000)
    below = grid.decoded(grid.encoded(-value, stream())) / grid.step
    assert set(below.tolist()) == {-1.0, 0.0}


def test_with_a_bound_on_the_norm_rounding_never_passes_it():
    grid = FixedPoint(2.0**24, 1)  # a step of 2^-6: rounding lengthens this vector by far more than a thousandth
    value = {"w": torch.full((400,), 0.5 / 20, dtype=torch.float64)}  # of length 0.5
    free = encoded_update(value, grid, stream())
    held = encoded_update(value, grid, stream(), longest=0.5)
    assert float(grid.decoded(free["w"]).norm()) > 0.5
    assert float(grid.decoded(held["w"]).norm()) <= 0.5
    fine = FixedPoint(1.0, 4)
    easy = encoded_update(value, fine, stream(), longest=0.5 * (1 + 5e-4))
    assert float((fine.decoded(easy["w"]) - value["w"]).abs().max()) < fine.step  # the first draw held


def test_a_sum_that_still_holds_a_mask_is_seen():
    grid = FixedPoint(1.0, 3)
    words = {"w": grid.encoded(torch.zeros(64), stream())}
    assert grid.possible(words["w"], 3)
    mask(words, bytes(32))
    assert not grid.possible(words["w"], 3)


def test_a_mask_is_chacha20_over_all_arrays_in_the_order_of_their_names():
    """The obvious twin: one keystream in one go, cut by hand."""
    key = bytes(range(32))
    vectors = {name: np.zeros(size, np.uint32) for name, size in (("b", (3, 5)), ("a", (PIECE + 7,)), ("c", ()))}
    mask(vectors, key)
    total = PIECE + 7 + 15 + 1
    whole = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(4 * total))
    expected = np.frombuffer(whole, "<u4")
    assert np.array_equal(vectors["a"], expected[: PIECE + 7])
    assert np.array_equal(vectors["b"].reshape(-1), expected[PIECE + 7 : -1])
    assert vectors["c"] == expected[-1]
    mask(vectors, key, -1)
    assert all(not value.any() for value in vectors.values())


def test_masks_wrap_around_and_cancel_whatever_lies_under_them():
    words = np.array([0, 1, 2**31, 2**32 - 1], np.uint32)
    kept = words.copy()
    MaskStream(bytes(32)).add_to(words)
    assert not np.array_equal(words, kept)
    MaskStream(bytes(32)).add_to(words, -1)
    assert np.array_equal(words, kept)


@pytest.mark.parametrize(("bound", "members"), [(0.0, 1), (math.inf, 1), (1.0, 0), (1.0, 2**24)])
def test_a_grid_without_sense_is_refused(bound, members):
    with pytest.raises(ValueError, match="must be"):
        FixedPoint(bound, members)
