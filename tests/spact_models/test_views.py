"""Batches and augmentation: one draw a clip, the same for all frames, the same from the same generator."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from spact_models import views
from spact_models.errors import UserError
from spact_models.game_settings import AugmentSettings
from spact_models.speed import onto
from spact_models.views import (
    NO_AUGMENTATION,
    AugmentConfig,
    FrameBatch,
    augment_clips,
    augmentation,
    draw,
    prepare,
    to_float_BCTHW,
)

STILL = NO_AUGMENTATION


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def only(**changes: float) -> AugmentConfig:
    """A config that does one thing and nothing else."""
    return AugmentConfig(**{**STILL.__dict__, **changes})


def clips(batch: int = 4, frames: int = 3, height: int = 20, width: int = 24) -> Tensor:
    """Smooth random clips: bilinear sampling by hand and by the library agree to rounding."""
    small = torch.rand(batch, 3, frames, 5, 6, generator=generator(7))
    return torch.nn.functional.interpolate(small, size=(frames, height, width), mode="trilinear")


def frames(batch: int, length: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (batch, length, 16, 16, 3), dtype=torch.uint8, generator=generator(seed))


def test_bytes_become_floats_with_channels_before_time() -> None:
    frames_BTHWC = frames(2, 3, seed=1)
    clip_BCTHW = to_float_BCTHW(frames_BTHWC)
    assert clip_BCTHW.shape == (2, 3, 3, 16, 16)
    for b, c, t in [(0, 0, 0), (1, 2, 1), (0, 1, 2)]:
        assert torch.equal(clip_BCTHW[b, c, t], frames_BTHWC[b, t, :, :, c].float() / 255)
    with pytest.raises(TypeError, match="uint8"):
        to_float_BCTHW(clip_BCTHW)


def test_nothing_switched_on_changes_nothing() -> None:
    clip = clips()
    torch.testing.assert_close(augment_clips(clip, STILL, generator()), clip, atol=1e-5, rtol=0)


def slow_frame(frame_CHW: Tensor, clip_grey_mean: float, d: dict[str, float]) -> Tensor:
    """One frame, one step after the other, with loops: the twin of the vectorised augmentation."""
    _, height, width = frame_CHW.shape
    out = torch.zeros_like(frame_CHW, dtype=torch.float64)
    left = (1 - d["crop_share"]) * d["crop_left"] * width
    top = (1 - d["crop_share"]) * d["crop_top"] * height
    for y in range(height):
        for x in range(width):
            column = width - 1 - x if d["flip"] else x
            source_x = min(max(left + (column + 0.5) * d["crop_share"] - 0.5, 0.0), width - 1.0)
            source_y = min(max(top + (y + 0.5) * d["crop_share"] - 0.5, 0.0), height - 1.0)
            x0, y0 = math.floor(source_x), math.floor(source_y)
            x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
            fx, fy = source_x - x0, source_y - y0
            upper = frame_CHW[:, y0, x0] * (1 - fx) + frame_CHW[:, y0, x1] * fx
            lower = frame_CHW[:, y1, x0] * (1 - fx) + frame_CHW[:, y1, x1] * fx
            out[:, y, x] = upper * (1 - fy) + lower * fy
    out = recoloured(out, clip_grey_mean, d)
    if d["erase"]:
        box_h, box_w = round(d["erase_height"] * height), round(d["erase_width"] * width)
        y, x = round(d["erase_top"] * (height - box_h)), round(d["erase_left"] * (width - box_w))
        out[:, y : y + box_h, x : x + box_w] = 0
    return out


def luma(frame_CHW: Tensor) -> Tensor:
    return 0.299 * frame_CHW[0] + 0.587 * frame_CHW[1] + 0.114 * frame_CHW[2]


def recoloured(frame_CHW: Tensor, clip_grey_mean: float, d: dict[str, float]) -> Tensor:
    """Saturation, hue, grey, brightness, contrast, gamma in turn, each as its definition says."""
    grey = luma(frame_CHW)
    i = 0.595716 * frame_CHW[0] - 0.274453 * frame_CHW[1] - 0.321263 * frame_CHW[2]
    q = 0.211456 * frame_CHW[0] - 0.522591 * frame_CHW[1] + 0.311135 * frame_CHW[2]
    saturation = 0.0 if d["grey"] else d["saturation"]
    angle = 2 * math.pi * d["hue"]
    turned_i = saturation * (math.cos(angle) * i - math.sin(angle) * q)
    turned_q = saturation * (math.sin(angle) * i + math.cos(angle) * q)
    red = grey + 0.9563 * turned_i + 0.6210 * turned_q
    green = grey - 0.2721 * turned_i - 0.6474 * turned_q
    blue = grey - 1.1070 * turned_i + 1.7046 * turned_q
    bright = torch.stack([red, green, blue]) * d["brightness"]
    contrasted = (1 - d["contrast"]) * clip_grey_mean * d["brightness"] + d["contrast"] * bright
    return contrasted.clamp(0, 1) ** d["gamma"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_a_slow_twin_that_loops_over_clips_frames_and_pixels(seed: int) -> None:
    config = AugmentConfig(grey_probability=0.3)
    clip = clips(batch=5)
    fast = augment_clips(clip, config, generator(seed))
    drawn = draw(5, config, generator(seed))
    for b in range(5):
        d = {name: float(value[b]) for name, value in vars(drawn).items()}
        # Contrast pulls towards the mean of the whole clip after cropping: no flicker.
        geometry = dict(d, **neutral_colour())
        grey_mean = float(torch.stack([luma(slow_frame(f, 0.0, geometry)) for f in clip[b].unbind(1)]).mean())
        for t in range(clip.shape[2]):
            slow = slow_frame(clip[b, :, t], grey_mean, d)
            torch.testing.assert_close(fast[b, :, t].double(), slow, atol=2e-3, rtol=0)


def neutral_colour() -> dict[str, float]:
    return {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "gamma": 1.0, "grey": 0.0, "erase": 0.0}


def test_all_frames_of_a_clip_are_treated_alike_and_clips_differ() -> None:
    still = clips(batch=6, frames=1).expand(-1, -1, 4, -1, -1)
    out = augment_clips(still, AugmentConfig(), generator())
    for t in range(1, 4):
        torch.testing.assert_close(out[:, :, t], out[:, :, 0], atol=1e-6, rtol=0)
    same_clip = clips(batch=1).expand(6, -1, -1, -1, -1)
    varied = augment_clips(same_clip, AugmentConfig(), generator())
    differences = [(varied[a] - varied[b]).abs().max() for a in range(6) for b in range(a)]
    assert min(differences) > 0.01


def test_output_stays_in_range_and_moves_with_the_generator_only() -> None:
    clip = torch.rand(8, 3, 2, 16, 16, generator=generator(3)).round()  # black and white: the hardest to keep inside
    config = AugmentConfig()
    first, again = augment_clips(clip, config, generator(5)), augment_clips(clip, config, generator(5))
    assert torch.equal(first, again)
    assert not torch.equal(first, augment_clips(clip, config, generator(6)))
    assert first.min() >= 0.0
    assert first.max() <= 1.0
    torch.manual_seed(123)
    state = torch.get_rng_state()
    augment_clips(clip, config, generator(5))
    assert torch.equal(state, torch.get_rng_state())


def test_each_effect_alone_does_what_its_name_says() -> None:
    clip = clips()
    torch.testing.assert_close(
        augment_clips(clip, only(flip_probability=1.0), generator()), clip.flip(-1), atol=1e-5, rtol=0
    )
    grey = augment_clips(clip, only(grey_probability=1.0), generator())
    torch.testing.assert_close(grey[:, 0], grey[:, 2], atol=1e-4, rtol=0)
    torch.testing.assert_close(grey[:, 0], torch.stack([luma(c) for c in clip]), atol=1e-3, rtol=0)
    hued = augment_clips(clip * 0.2 + 0.4, only(hue=0.05), generator())
    assert (hued - (clip * 0.2 + 0.4)).abs().max() > 0.002
    torch.testing.assert_close(luma(hued[0]), luma(clip[0] * 0.2 + 0.4), atol=1e-4, rtol=0)
    erased = augment_clips(torch.ones(64, 3, 2, 20, 20), only(erase_probability=1.0), generator())
    holes = (erased[:, 0, 0] == 0).sum(dim=(1, 2))
    assert holes.min() >= 4  # 2 × 2 of 20 × 20 at the least, 3 × 3 at most
    assert holes.max() <= 9
    assert torch.equal(erased[:, :, 0], erased[:, :, 1])


def test_draws_cover_their_ranges() -> None:
    drawn = draw(4000, AugmentConfig(), generator())
    for values, low, high in [
        (drawn.crop_share, 0.6, 1.0),
        (drawn.contrast, 0.9, 1.1),
        (drawn.brightness, 0.9, 1.1),
        (drawn.saturation, 0.9, 1.1),
        (drawn.hue, -0.05, 0.05),
        (drawn.gamma, 0.85, 1.15),
    ]:
        width = high - low
        assert low <= values.min() < low + 0.01 * width
        assert high - 0.01 * width < values.max() <= high
    assert drawn.grey.float().mean() == pytest.approx(0.10, abs=0.02)
    assert drawn.flip.float().mean() == pytest.approx(0.50, abs=0.04)


def test_prepare_draws_the_two_views_independently() -> None:
    same = frames(6, 2, seed=2)
    batch = FrameBatch(frames(4, 5, seed=1), torch.tensor([0, 1, -1, 2]), same, same)
    prepared = prepare(batch, AugmentConfig(), generator(4))
    assert prepared.clips_BCTHW.shape == (4, 3, 5, 16, 16)
    assert prepared.first_NCTHW.shape == prepared.second_NCTHW.shape == (6, 3, 2, 16, 16)
    assert prepared.labels_B.tolist() == [0, 1, -1, 2]
    for n in range(6):
        assert (prepared.first_NCTHW[n] - prepared.second_NCTHW[n]).abs().max() > 0.01
    again = prepare(onto(torch.device("cpu"), batch), AugmentConfig(), generator(4))
    assert torch.equal(prepared.second_NCTHW, again.second_NCTHW)


def test_views_are_made_when_looked_at_and_the_draws_are_the_same_if_nobody_looks(monkeypatch) -> None:
    made = []
    plain = views.to_float_BCTHW
    monkeypatch.setattr(views, "to_float_BCTHW", lambda taken: made.append(len(taken)) or plain(taken))
    source, config = generator(4), AugmentConfig()
    batch = FrameBatch(frames(4, 5, seed=1), torch.tensor([0, 1, -1, 2]), frames(6, 2, seed=2), frames(6, 2, seed=3))
    looked_at, nobody_looks = prepare(batch, config, source), prepare(batch, config, source)
    assert made == [4, 4]
    assert torch.equal(looked_at.second_NCTHW, looked_at.second_NCTHW)
    assert made == [4, 4, 6]
    by_hand = generator(4)
    for taken, first, second in 2 * [(batch.clips_BTHWC, batch.first_NTHWC, batch.second_NTHWC)]:
        shown = [augment_clips(plain(value), config, by_hand) for value in (taken, first, second)]
    assert torch.equal(nobody_looks.clips_BCTHW, shown[0])
    assert torch.equal(nobody_looks.first_NCTHW, shown[1])
    assert torch.equal(nobody_looks.second_NCTHW, shown[2])


def test_the_settings_say_how_much_a_crop_keeps() -> None:
    """Of a bright left edge, a tenth of the frame, whole frames keep all, and crops less the more they may cut."""
    edge = torch.zeros(400, 3, 1, 20, 20)
    edge[..., :2] = 1.0
    kept = []
    for share in (1.0, 0.9, 0.6):
        config = augmentation(AugmentSettings(crop_min_share=share))
        assert config == replace(AugmentConfig(), crop_min_share=share)
        cropped = augment_clips(edge, only(crop_min_share=config.crop_min_share), generator(3))
        kept.append(float((cropped[..., 0] > 0.9).float().mean()))
    assert kept[0] == 1.0 > kept[1] > 0.8 > kept[2]


def test_settings_can_switch_augmentation_off() -> None:
    assert augmentation(AugmentSettings(enabled=False, crop_min_share=0.9)) == NO_AUGMENTATION


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_min_share": 0.0},
        {"crop_min_share": 1.2},
        {"flip_probability": -0.1},
        {"grey_probability": 2.0},
        {"contrast": 1.0},
        {"gamma": -0.1},
        {"hue": 0.6},
        {"erase_min_share": 0.3, "erase_max_share": 0.2},
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"augment\.{next(iter(wrong))} = .*must be"):
        AugmentConfig(**wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_applies_the_same_draws() -> None:
    clip = clips()
    on_cpu = augment_clips(clip, AugmentConfig(), generator(1))
    on_cuda = augment_clips(clip.cuda(), AugmentConfig(), generator(1)).cpu()
    torch.testing.assert_close(on_cuda, on_cpu, atol=1e-3, rtol=0)


def test_switched_off_colours_and_boxes_are_skipped_and_not_drawn_differently():
    """Strengths of 0 skip the pass over the pixels; the result is that of the pass with factors of one."""
    clips = torch.rand(3, 3, 2, 12, 12, generator=torch.Generator().manual_seed(4))
    tiny = 1e-7  # not skipped, and too faint to see
    off = AugmentConfig(brightness=0, contrast=0, saturation=0, hue=0, gamma=0, grey_probability=0, erase_probability=0)
    faint = AugmentConfig(
        brightness=tiny, contrast=0, saturation=0, hue=0, gamma=0, grey_probability=0, erase_probability=0
    )
    assert not off.recolours
    assert faint.recolours
    skipped, passed = (augment_clips(clips, config, torch.Generator().manual_seed(9)) for config in (off, faint))
    torch.testing.assert_close(skipped, passed, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(skipped, clips, atol=1e-3)  # the crop and the flip still happen
