"""Randomness that depends on what it is named after, and not on who else draws, in which thread or memory layout."""

import threading

import numpy as np
import pytest
import torch

from spact_models.seeds import noise_like, own_noise, seed_noise, seeded, unknown_noise

CPU = torch.device("cpu")


def test_output_noise_is_the_contexts_own_and_the_same_in_any_memory_layout():
    plain = torch.zeros(2, 3, 4, 5, 6)
    with own_noise(CPU):
        seed_noise("a", 1)
        first = noise_like(plain)
        torch.manual_seed(7)  # somebody else's
        torch.rand(3)
        seed_noise("a", 1)
        assert torch.equal(noise_like(plain.to(memory_format=torch.channels_last_3d)), first)
        seed_noise("a", 2)
        assert not torch.equal(noise_like(plain), first)
    seed_noise("a", 1)  # without a context torch's global generator, which draws the same
    assert torch.equal(noise_like(plain), first)
    assert abs(float(first.mean())) < 0.2
    assert 0.8 < float(first.std()) < 1.2


def test_a_context_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with own_noise(CPU):
        seed_noise("b")
        noise_like(torch.zeros(9))
    assert torch.equal(torch.rand(4), expected)


def test_noise_that_nobody_may_draw_again_comes_from_no_generator_of_a_few_seeds(monkeypatch):
    """torch keeps 32 bits of a CPU's seed: four thousand million tries would find the noise of a frame."""
    value = torch.zeros(40, 50, dtype=torch.float64)
    again = torch.randn(3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.randn(3, generator=torch.Generator().manual_seed(1 + 2**32)), again)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: pytest.fail("torch was asked for noise"))
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        np.random.seed(3)
        with unknown_noise(CPU):
            drawn.append(noise_like(value))
    first, second = drawn
    assert first.dtype == value.dtype
    assert first.shape == value.shape
    for noise in (first, second, (first - second) / 2**0.5):
        assert abs(float(noise.mean())) < 0.2
        assert 0.9 < float(noise.std()) < 1.1
    with unknown_noise(CPU), pytest.raises(RuntimeError, match="takes no seed"):
        seed_noise("a")


def test_threads_that_build_networks_at_the_same_time_get_the_weights_of_one_alone():
    """torch has one global generator: without a lock two would draw from each other's seeds."""

    def weights(number):
        with seeded("network", number):
            return [torch.rand(50) for _ in range(200)]

    alone = [weights(number) for number in range(4)]
    found, start = {}, threading.Barrier(4)

    def build(number):
        start.wait()
        found[number] = weights(number)

    threads = [threading.Thread(target=build, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert all(torch.equal(a, b) for a, b in zip(found[number], alone[number], strict=True))
