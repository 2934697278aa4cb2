"""Obfuscations: called like an anonymizer, each against its plain definition."""

import pytest
import torch
from torch import Tensor

from spact_models.anonymizer import ClipTransform, represent
from spact_models.errors import UserError
from spact_models.obfuscations import OBFUSCATIONS, BlurDifferenceQuantize, by_name

NAMES = [
    "raw",
    "greyscale",
    "downsample2x",
    "downsample4x",
    "blur_weak",
    "blur_strong",
    "pixelate",
    "difference_grey",
    "difference1bit",
    "bdq",
]


def clip(frames: int = 4, height: int = 24, width: int = 24) -> Tensor:
    return torch.rand(2, 3, frames, height, width, generator=torch.Generator().manual_seed(0))


def test_the_names_are_the_agreed_ones_and_an_unknown_one_lists_them() -> None:
    assert list(OBFUSCATIONS) == NAMES
    with pytest.raises(UserError, match=r'"blurr".*blur_weak.*difference1bit'):
        by_name("blurr")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(24, 24), (17, 30), (3, 5)])
def test_every_one_keeps_shape_and_range_and_starts_black_where_it_looks_back(name: str, size: tuple[int, int]) -> None:
    transform = by_name(name)
    raw = clip(4, *size)
    out = transform(raw)
    assert out.shape == raw.shape
    assert out.min() >= 0.0
    assert out.max() <= 1.0 + 1e-5
    assert transform.transform(raw).shape[2] == 4 - transform.history
    if transform.history:
        assert not out[:, :, 0].any()
    assert not list(transform.parameters())


def test_represent_gives_every_one_the_same_frames() -> None:
    raw = clip(5)
    assert torch.equal(represent(by_name("raw"), raw, lead_in_frames=1), raw[:, :, 1:])
    assert represent(by_name("difference1bit"), raw, lead_in_frames=1).shape[2] == 4
    with pytest.raises(ValueError, match="needs 1"):
        represent(by_name("difference1bit"), raw, lead_in_frames=0)


def test_greyscale_and_differences_equal_their_definitions() -> None:
    raw = clip()
    grey = 0.299 * raw[:, 0] + 0.587 * raw[:, 1] + 0.114 * raw[:, 2]
    for channel in range(3):
        torch.testing.assert_close(by_name("greyscale")(raw)[:, channel], grey)
    out = by_name("difference_grey")(raw)
    bits = by_name("difference1bit")(raw)
    for t in range(1, 4):
        expected = (3 * (grey[:, t] - grey[:, t - 1]).abs()).clamp(max=1)
        torch.testing.assert_close(out[:, 1, t], expected)
        largest = (raw[:, :, t] - raw[:, :, t - 1]).abs().max(dim=1).values
        assert torch.equal(bits[:, 2, t] == 1, largest > 0.15)
    assert set(bits.unique().tolist()) == {0.0, 1.0}


def test_one_bit_sees_a_change_of_one_channel_that_grey_hardly_shows() -> None:
    raw = torch.full((1, 3, 2, 8, 8), 0.5)
    raw[:, 2, 1] += 0.2  # blue alone
    assert by_name("difference1bit").transform(raw).min() == 1
    assert by_name("difference_grey").transform(raw).max() == pytest.approx(3 * 0.114 * 0.2, abs=1e-6)


@pytest.mark.parametrize(("name", "factor"), [("downsample2x", 2), ("downsample4x", 4)])
def test_downsampling_averages_blocks(name: str, factor: int) -> None:
    raw = clip(1, 16, 16)
    blocks = raw.reshape(2, 3, 1, 16 // factor, factor, 16 // factor, factor).mean(dim=(4, 6))
    expected = torch.nn.functional.interpolate(blocks[:, :, 0], size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(by_name(name)(raw)[:, :, 0], expected)


def test_pixelation_leaves_even_blocks() -> None:
    raw = clip(1, 48, 48)
    blocks = by_name("pixelate")(raw)[:, :, 0].reshape(2, 3, 12, 4, 12, 4)
    assert torch.equal(blocks.amax(dim=(3, 5)), blocks.amin(dim=(3, 5)))
    torch.testing.assert_close(blocks[:, :, :, 0, :, 0], raw[:, :, 0].reshape(2, 3, 12, 4, 12, 4).mean(dim=(3, 5)))


def test_blur_is_a_normalised_gaussian_of_a_size_that_follows_the_frame() -> None:
    def spread(transform: ClipTransform, size: int) -> tuple[int, float]:
        point = torch.zeros(1, 3, 1, size, size)
        point[:, :, :, size // 2, size // 2] = 1
        row = transform(point)[0, 0, 0].sum(dim=0)
        assert float(row.sum()) == pytest.approx(1.0, abs=1e-5)
        return int((row > 1e-7).sum()), float(row[size // 2] / row[size // 2 + 1])

    weak, ratio = spread(by_name("blur_weak"), 112)
    assert weak == 13
    assert ratio == pytest.approx(2.718281828 ** (0.5 / 10**2), abs=1e-4)
    assert spread(by_name("blur_strong"), 112)[0] == 21
    assert spread(by_name("blur_strong"), 224)[0] in (41, 43)
    flat = torch.full((1, 3, 2, 32, 32), 0.7)
    torch.testing.assert_close(by_name("blur_strong")(flat), flat)


def test_bdq_blurs_then_differs_then_rounds() -> None:
    """Pixel by pixel at 112 px, where the kernel is 5 × 5 and σ is 1."""
    raw = clip(3, 112, 112)
    out = by_name("bdq").transform(raw)
    assert out.shape == (2, 3, 2, 112, 112)
    assert len(out.unique()) <= 15
    bell = [[2.718281828 ** (-0.5 * (dy * dy + dx * dx)) for dx in range(-2, 3)] for dy in range(-2, 3)]
    total = sum(map(sum, bell))

    def blurred(b: int, c: int, t: int, y: int, x: int) -> float:
        near = [
            (dy, dx, min(max(y + dy, 0), 111), min(max(x + dx, 0), 111)) for dy in range(-2, 3) for dx in range(-2, 3)
        ]
        return sum(bell[dy + 2][dx + 2] / total * float(raw[b, c, t, v, u]) for dy, dx, v, u in near)

    for b, c, t, y, x in [(0, 0, 0, 0, 0), (1, 2, 1, 111, 3), *((0, 1, 1, y, 7 * y % 112) for y in range(0, 112, 3))]:
        change = (blurred(b, c, t + 1, y, x) - blurred(b, c, t, y, x)) / 0.5 * 7
        if abs(change % 1 - 0.5) > 1e-3:  # where rounding is not a toss-up
            expected = 0.5 + 0.5 * round(max(-7.0, min(7.0, change))) / 7
            assert float(out[b, c, t, y, x]) == pytest.approx(expected, abs=1e-6)


def test_bdq_shows_rest_as_grey_and_the_sign_of_a_change() -> None:
    raw = torch.full((1, 3, 4, 32, 32), 0.3)
    raw[:, 0, 1:] += 0.6  # red leaps and stays
    raw[:, 1, 2:] -= 0.2
    raw[:, 2, 3:] += 0.03  # below half a step
    out = by_name("bdq").transform(raw)[0, :, :, 16, 16]
    step = 0.5 / 7
    expected = torch.tensor([[1.0, 0.5, 0.5], [0.5, 0.5 - 3 * step, 0.5], [0.5, 0.5, 0.5]])
    torch.testing.assert_close(out, expected)
    with pytest.raises(ValueError, match="odd"):
        BlurDifferenceQuantize(levels=16)
