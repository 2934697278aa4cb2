import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from spact_models.losses import UNLABELLED, action_loss, chance_level, distillation, nt_xent, rate, reconstruction


def slow_nt_xent(first, second, temperature):
    """The double loop of SimCLR's equation 1."""
    views = [*first, *second]
    count = len(first)
    total = 0.0
    for i, view in enumerate(views):
        partner = (i + count) % (2 * count)
        numerator = math.exp(float(view @ views[partner]) / temperature)
        denominator = sum(math.exp(float(view @ other) / temperature) for k, other in enumerate(views) if k != i)
        total -= math.log(numerator / denominator)
    return total / (2 * count)


@pytest.mark.parametrize(("pairs", "temperature"), [(2, 0.1), (5, 0.1), (7, 0.5)])
def test_nt_xent_is_the_double_loop(pairs, temperature):
    generator = torch.Generator().manual_seed(pairs)
    first, second = functional.normalize(torch.randn(2, pairs, 16, generator=generator), dim=2)
    assert float(nt_xent(first, second, temperature)) == pytest.approx(
        slow_nt_xent(first, second, temperature), rel=1e-5
    )


def test_nt_xent_of_embeddings_that_say_nothing_is_chance():
    same = functional.normalize(torch.ones(8, 16), dim=1)
    assert float(nt_xent(same, same, 0.1)) == pytest.approx(chance_level(8))
    assert chance_level(64) == pytest.approx(4.84, abs=0.01)  # the figure of the paper's batch


def test_nt_xent_of_views_that_match_is_low_and_order_of_pairs_does_not_matter():
    matching = torch.eye(8)
    assert float(nt_xent(matching, matching, 0.1)) < 0.01
    generator = torch.Generator().manual_seed(0)
    first, second = functional.normalize(torch.randn(2, 6, 9, generator=generator), dim=2)
    order = torch.randperm(6, generator=generator)
    torch.testing.assert_close(nt_xent(first, second, 0.1), nt_xent(second[order], first[order], 0.1))


def test_nt_xent_can_be_pushed_far_beyond_chance():
    """The measured overshoot: views of one scene driven apart; this is what the cap on the reward is for."""
    first = torch.eye(64)[:, :64]
    assert float(nt_xent(first, first.roll(1, 0), 0.1)) > 2 * chance_level(64)


def test_action_loss_mixes_cross_entropy_and_distillation():
    generator = torch.Generator().manual_seed(1)
    logits, teacher = torch.randn(2, 4, 3, generator=generator)
    labels = torch.tensor([0, UNLABELLED, 2, UNLABELLED])
    expected = 0.0
    for b in range(4):
        log_p = torch.log_softmax(logits[b], 0)
        if labels[b] >= 0:
            expected -= float(log_p[labels[b]])
        else:
            q = torch.softmax(teacher[b], 0)
            expected += float((q * (torch.log(q) - log_p)).sum())
    assert float(action_loss(logits, labels, teacher)) == pytest.approx(expected / 4, rel=1e-5)


def test_unlabelled_clips_without_a_teacher_teach_nothing():
    logits = torch.randn(3, 4, requires_grad=True)
    labels = torch.tensor([1, UNLABELLED, UNLABELLED])
    loss = action_loss(logits, labels)
    torch.testing.assert_close(loss, functional.cross_entropy(logits[:1], labels[:1]))
    none = action_loss(logits, torch.full((3,), UNLABELLED))
    none.backward()
    assert float(none) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_distillation_is_zero_only_where_the_two_agree():
    logits = torch.randn(3, 5)
    assert distillation(logits, logits + 2.0).abs().max() < 1e-6  # softmax does not see a shift
    assert (distillation(logits, logits.flip(1)) > 0).all()


def test_reconstruction_is_the_mean_absolute_difference():
    clip = torch.zeros(1, 3, 2, 4, 4)
    assert float(reconstruction(clip + 0.25, clip)) == pytest.approx(0.25)


def test_rate_is_the_divergence_of_the_noisy_picture_from_noise_alone():
    picture = torch.rand(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    divergence = kl_divergence(Normal(picture, 0.3), Normal(torch.zeros(()), 0.3)).mean()
    assert torch.allclose(rate(picture, 0.3), divergence, atol=1e-6)
    assert float(rate(torch.zeros(3), 0.3)) == 0.0
