"""The reconstruction attacker: it gives back what is there, cannot give back what is not, and is measured rightly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from spact_models.anonymizer import ClipTransform
from spact_models.errors import UserError
from spact_models.game_settings import JudgeConfig
from spact_models.inversion import EQUAL_DB, SCORED_FRAMES, Inverter, invert, inverter_for, picture_scores
from spact_models.judge import JudgeSet
from spact_models.obfuscations import by_name

CPU = torch.device("cpu")
SEEN = [(200, 60, 60), (60, 60, 200), (40, 140, 60), (200, 120, 200), (90, 160, 180), (230, 230, 80)]
NEW = [(60, 140, 140), (200, 90, 20), (130, 60, 180)]  # colours that no training video shows


class Black(ClipTransform):
    """Nothing is let through."""

    def transform(self, clip_BCTHW: Tensor) -> Tensor:
        return torch.zeros_like(clip_BCTHW)


class Earlier(ClipTransform):
    """Every frame shows the frame before it, in negative: only a neighbour knows a frame's own picture."""

    history = 1

    def transform(self, clip_BCTHW: Tensor) -> Tensor:
        return 1 - clip_BCTHW[:, :, :-1]


def make_set(
    colours: list[tuple[int, int, int]], seed: int, clips: int = 3, frames: int = 4, size: int = 16
) -> JudgeSet:
    """A square of each colour somewhere on a shaded ground, moving; one lead-in frame."""
    rng = np.random.default_rng(seed)
    ground = np.broadcast_to(np.linspace(60, 160, size)[:, None, None], (size, size, 3)).astype(np.uint8)
    out = np.empty((len(colours), clips, frames + 1, size, size, 3), np.uint8)
    for v, k in np.ndindex(len(colours), clips):
        y, x = rng.integers(0, size - 7, 2)
        for t in range(frames + 1):
            out[v, k, t] = ground
            out[v, k, t, y : y + 6, (x + t) % (size - 6) :][:, :6] = colours[v]
    return JudgeSet(
        clips_MTHWC=torch.from_numpy(out).flatten(0, 1),
        video_M=torch.arange(len(colours)).repeat_interleave(clips),
        views_VKTHWC=torch.from_numpy(out[:, :1, :2].copy()),
        labels={"look": torch.arange(len(colours))},
        group_V=torch.zeros(len(colours)),
        lead_in_frames=1,
    )


TRAIN, TEST = make_set(3 * SEEN, 1), make_set(SEEN[:2] + NEW, 2)


def inverted(transform: ClipTransform, steps: int, seed: int = 0, test: JudgeSet = TEST, **more):
    config = JudgeConfig(steps=steps, batch=16, lr=3e-3, train_clips=3, test_clips=3)
    seen = [part.through(transform, CPU) for part in (TRAIN, test)]
    return invert(TRAIN, seen[0], test, seen[1], config, CPU, seed, **more)


def test_what_is_not_hidden_comes_back_within_few_steps() -> None:
    found = inverted(by_name("raw"), steps=40)
    assert found.psnr_db_V.shape == found.ssim_V.shape == (5,)
    assert found.psnr_db_V.min() > 28
    assert found.ssim_V.min() > 0.97
    assert (found.psnr_db_V > found.floor_psnr_db_V + 12).all()


def test_from_black_frames_the_mean_picture_is_the_best_guess() -> None:
    found = inverted(Black(), steps=40)
    above_V = found.psnr_db_V - found.floor_psnr_db_V  # not zero: L1 draws the guess towards the median picture
    assert above_V.mean().abs() < 0.7
    assert above_V.max() < 1.5  # a colour near the ground's is better off with the median
    assert (found.ssim_V - found.floor_ssim_V).max() < 0.05
    shown = found.test.clips_MTHWC
    assert torch.equal(shown, shown[:1, :1].expand_as(shown))  # one guess for all


def test_a_poor_picture_is_no_worse_a_start_than_none() -> None:
    """One-bit differences look nothing like the scene; the attacker still knows at least the mean picture."""
    found = inverted(by_name("difference1bit"), steps=1)
    assert (found.psnr_db_V > found.floor_psnr_db_V - 0.5).all()


def test_the_floor_is_the_mean_training_picture() -> None:
    found = inverted(Black(), steps=1)
    mean = TRAIN.clips_MTHWC[:, 1:].double().mean(dim=(0, 1)).round()
    expected = []
    for video in range(TEST.videos):
        frames = TEST.clips_MTHWC[TEST.video_M == video][:, 1:].flatten(0, 1).double()
        assert len(frames) <= SCORED_FRAMES
        errors = ((frames - mean) ** 2).mean(dim=(1, 2, 3))
        expected.append((10 * torch.log10(255**2 / errors)).mean())
    torch.testing.assert_close(found.floor_psnr_db_V.double(), torch.stack(expected), atol=1e-3, rtol=0)


def test_colours_that_are_gone_do_not_come_back() -> None:
    """Greyscale leaves the place of everything: the picture returns, the colour of strangers' clothes does not."""

    def errors(name: str) -> tuple[float, float]:
        """Mean error over the pixels of the unseen colours' squares: of brightness, and of what is not brightness."""
        restored = inverted(by_name(name), steps=40).test
        unseen = TEST.video_M >= 2
        raw, shown = TEST.clips_MTHWC[unseen][:, 1:].float(), restored.clips_MTHWC[unseen].float()
        square = (raw.amax(dim=-1) - raw.amin(dim=-1)) > 30
        weights = torch.tensor([0.299, 0.587, 0.114])
        luma = [(one @ weights)[square] for one in (raw, shown)]
        chroma = [(one[square] - level[:, None]) for one, level in zip((raw, shown), luma, strict=True)]
        return float((luma[0] - luma[1]).abs().mean()), float((chroma[0] - chroma[1]).abs().mean())

    raw_luma, raw_chroma = errors("raw")
    grey_luma, grey_chroma = errors("greyscale")
    assert max(raw_luma, grey_luma) < 20
    assert raw_chroma < 12
    assert grey_chroma > 35


def test_neighbouring_frames_are_used_and_clips_do_not_run_into_each_other() -> None:
    """Where frame t shows only t-1, the frame after it knows t; the last frame of a clip has none after it."""
    wide, narrow = (inverted(Earlier(), steps=20, inverter=Inverter(window=window)).test for window in (3, 1))
    raw = TEST.clips_MTHWC[:, 1:].float()
    error_of = [(shown.clips_MTHWC.float() - raw).abs().mean(dim=(0, 2, 3, 4)) for shown in (wide, narrow)]
    assert (error_of[0][:-1] < 0.6 * error_of[1][:-1]).all()
    assert error_of[0][-1] > 1.3 * error_of[0][:-1].max()


def test_the_same_seed_restores_the_same_and_nobodys_randomness_is_touched() -> None:
    torch.manual_seed(1)
    first = inverted(by_name("pixelate"), steps=4)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = inverted(by_name("pixelate"), steps=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.test.clips_MTHWC, again.test.clips_MTHWC)
    assert torch.equal(first.train.clips_MTHWC, again.train.clips_MTHWC)
    assert torch.equal(first.psnr_db_V, again.psnr_db_V)
    other = inverted(by_name("pixelate"), steps=4, seed=1)
    assert not torch.equal(first.test.clips_MTHWC, other.test.clips_MTHWC)


def test_restored_sets_can_be_attacked_like_any_other() -> None:
    done = []
    before = TRAIN.clips_MTHWC.clone()
    found = inverted(by_name("difference1bit"), steps=3, on_step=lambda: done.append(1))
    assert len(done) == 3
    for restored, held in ((found.train, TRAIN), (found.test, TEST)):
        assert restored.clips_MTHWC.dtype == torch.uint8
        assert restored.clips_MTHWC.shape == held.clips_MTHWC[:, 1:].shape
        assert restored.lead_in_frames == 0
        assert torch.equal(restored.video_M, held.video_M)
        assert restored.labels == held.labels
    assert torch.equal(TRAIN.clips_MTHWC, before)


def test_scores_are_means_over_a_videos_frames_and_equal_frames_have_a_finite_one() -> None:
    rng = np.random.default_rng(0)
    raw = torch.from_numpy(rng.integers(0, 256, (3, 4, 16, 16, 3), dtype=np.uint8))
    shown = raw.clone()
    shown[1] = (raw[1].int() + 5).clamp(max=255).to(torch.uint8)
    psnr, ssim = picture_scores(raw, shown, torch.tensor([0, 1, 1]), 2)
    assert psnr[0] == pytest.approx(EQUAL_DB)
    assert ssim[0] == 1.0
    errors = ((raw[1].double() - shown[1].double()) ** 2).mean(dim=(1, 2, 3))
    expected = (10 * torch.log10(255**2 / errors)).sum() / 8 + EQUAL_DB / 2  # the second clip is equal
    assert float(psnr[1]) == pytest.approx(float(expected), abs=1e-3)
    assert 0.9 < ssim[1] < 1.0
    tiny = picture_scores(raw[:, :, :4, :6], shown[:, :, :4, :6], torch.tensor([0, 1, 1]), 2)
    assert torch.isfinite(torch.stack(tiny)).all()


def test_long_videos_are_scored_on_frames_spread_over_all_clips() -> None:
    clips = torch.zeros(8, 40, 8, 8, 3, dtype=torch.uint8)
    shown = clips.clone()
    shown[4:] += 51  # a fifth of the range: 13.98 dB
    psnr, _ = picture_scores(clips, shown, torch.zeros(8, dtype=torch.int64), 1)
    assert float(psnr[0]) == pytest.approx((EQUAL_DB + 13.979) / 2, abs=1e-2)


def test_sets_that_do_not_belong_together_are_refused() -> None:
    config = JudgeConfig(steps=1, batch=4, lr=3e-3, train_clips=3, test_clips=3)
    train, test = (part.through(by_name("raw"), CPU) for part in (TRAIN, TEST))
    with pytest.raises(ValueError, match="same clips"):
        invert(TRAIN, TRAIN, TEST, test, config, CPU, 0)
    with pytest.raises(ValueError, match="same clips"):
        invert(TRAIN, train, TEST, replace(test, video_M=test.video_M.flip(0)), config, CPU, 0)


def test_the_attacker_grows_with_the_frames_and_its_settings_are_checked() -> None:
    assert inverter_for(32).base_channels < inverter_for(112).base_channels
    for change, said in (({"window": 2}, r"window = 2, must be odd"), ({"mse_weight": -1.0}, "mse_weight = -1")):
        with pytest.raises(UserError, match=said):
            Inverter(**change)
