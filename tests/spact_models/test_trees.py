"""Trees over a clip's statistics: each number against a slow twin, and what they find under noise."""

import numpy as np
import pytest
import torch

from spact_models.game_settings import JudgeConfig
from spact_models.judge import Judge, JudgeSet
from spact_models.trees import attribute_scores, class_scores, grown, statistics


def clips(count=3, frames=4, height=16, width=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, frames, height, width, 3), generator=generator, dtype=torch.uint8)


def slow_statistics(clip_THWC):
    """One clip, number by number."""
    frames = clip_THWC.numpy().astype(np.float64) / 255
    lights = frames @ np.array([0.299, 0.587, 0.114])
    out = [frames[..., colour].mean() for colour in range(3)]
    out += [frames[..., colour].std(ddof=1) for colour in range(3)]
    out += [np.quantile(lights, share) for share in (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)]
    out += [light.mean() for light in lights]
    height, width = lights.shape[1] // 8, lights.shape[2] // 8
    blocks = [
        [light[y * height : (y + 1) * height, x * width : (x + 1) * width].mean() for light in lights]
        for y in range(8)
        for x in range(8)
    ]
    out += [np.mean(block) for block in blocks]
    out += [np.std(block) for block in blocks]
    height, width = frames.shape[1] // 4, frames.shape[2] // 4
    for colour in range(3):
        for y in range(4):
            for x in range(4):
                part = frames[:, y * height : (y + 1) * height, x * width : (x + 1) * width, colour]
                out.append(part.mean())
    return out


def test_each_number_is_what_it_is_called():
    held = clips()
    expected = torch.tensor(np.array([slow_statistics(clip) for clip in held]), dtype=torch.float32)
    torch.testing.assert_close(statistics(held), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("frames", "size"), [(1, 32), (2, 7), (5, 112)])
def test_any_clip_has_finite_numbers(frames, size):
    found = statistics(clips(2, frames, size, size))
    assert torch.isfinite(found).all()
    assert found.shape == (2, 6 + 8 + frames + 128 + 48)


def test_many_clips_are_each_clip():
    held = clips(70, 2, 8, 8)
    torch.testing.assert_close(statistics(held), torch.cat([statistics(clip[None]) for clip in held]))


def test_a_class_that_was_never_seen_has_no_chance():
    numbers = torch.arange(40.0)[:, None] % 4
    labels = torch.where(numbers[:, 0] < 2, 0, 3)
    scores = class_scores(grown(numbers, labels, 0), numbers, 5)
    assert torch.equal(scores.argmax(1), labels)
    assert scores[:, [1, 2, 4]].abs().max() == 0
    torch.testing.assert_close(scores.sum(1), torch.ones(40))


def test_an_unknown_attribute_teaches_nothing():
    """Half of the first attribute's answers are unknown, and those are where the second number says the opposite."""
    numbers = torch.arange(80.0)[:, None] % 2
    truth = numbers[:, 0].to(torch.int8)
    half = torch.where(torch.arange(80) % 4 < 2, truth, -1).to(torch.int8)
    never = torch.full((80,), -1, dtype=torch.int8)
    trees = grown(numbers, torch.stack([half, 1 - truth, never], dim=1), 0)
    scores = attribute_scores(trees, numbers)
    assert ((scores[:, 0] > 0.5) == (truth == 1)).all()
    assert ((scores[:, 1] > 0.5) == (truth == 0)).all()
    assert (scores[:, 2] == 0.5).all()


def test_one_attribute_alone_is_answered_too():
    numbers = torch.arange(40.0)[:, None] % 2
    truth = numbers[:, :1].to(torch.int8)
    assert torch.equal(attribute_scores(grown(numbers, truth, 0), numbers) > 0.5, truth == 1)


def faint(videos, seed):
    """Noise all over; of one kind of person the upper half is brighter by a fifth of the noise."""
    generator = torch.Generator().manual_seed(seed)
    look = torch.arange(videos) % 2
    shown = 0.4 + 0.3 * torch.randn(videos, 4, 16, 16, 1, generator=generator).expand(-1, -1, -1, -1, 3).clone()
    shown[:, :, :8] += 0.06 * look[:, None, None, None, None]
    frames = shown.clamp(0, 1).mul(255).to(torch.uint8)
    return JudgeSet(frames, torch.arange(videos), frames[:, :1], {"look": look}, torch.zeros(videos).long(), 0)


def test_trees_find_what_is_faint_under_noise_and_have_no_steps_to_stop_at():
    judge = Judge(JudgeConfig(steps=1, batch=12, train_clips=1, test_clips=1), "tiny", torch.device("cpu"), 0)
    found = judge.attack(faint(60, 1), faint(60, 2), "look", "clip-trees")
    assert found.top1 > 0.9
    assert found.learned is None
