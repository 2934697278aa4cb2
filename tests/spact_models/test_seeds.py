"""Randomness that depends on what it is named after, and not on who else draws, in which thread or memory layout."""

import threading

import torch

from spact_models.seeds import noise_like, own_noise, seed_noise, seeded

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
