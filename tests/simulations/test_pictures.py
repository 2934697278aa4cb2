"""Before and after, from real files to real files; what has no neighbour yet is black and never raw."""

import numpy as np
import pytest
import torch
from PIL import Image

from client.video.decode import probe, stream_video
from client.video.rows import read_rows
from simulations.pictures import (
    GAP_PX,
    PAPER,
    anonymized_frames,
    before_after_film,
    before_after_sheet,
    choose_rows,
    inversion_sheet,
)
from spact_models.anonymizer import Anonymizer, AnonymizerConfig


def make(kind, stride=1, size=16):
    torch.manual_seed(0)
    config = AnonymizerConfig(kind=kind, base_channels=4, depth=1, size_px=size, stride_frames=stride)
    return Anonymizer(config).eval()


@pytest.fixture
def video(squares):
    return np.stack(list(stream_video(read_rows(squares)[0].path)))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_frames_without_a_neighbour_are_black(video, stride):
    out = anonymized_frames(make("motion", stride), video)
    assert out.shape == video.shape
    assert out.dtype == np.uint8
    assert (out[:stride] == 0).all()
    assert all(frame.any() for frame in out[stride:])
    assert (anonymized_frames(make("motion", stride), video[:1]) == 0).all()  # one frame only


@pytest.mark.parametrize("stride", [1, 3])
def test_each_frame_is_anonymised_with_the_one_a_stride_before(video, stride):
    f_A = make("motion", stride, size=32)
    out = anonymized_frames(f_A, video)
    for t in range(stride, len(video)):
        pair = torch.from_numpy(np.stack([video[t - stride], video[t]])).permute(3, 0, 1, 2)[None] / 255.0
        with torch.no_grad():
            expected = f_A.transform(pair)[0, :, 0].permute(1, 2, 0) * 255
        assert np.abs(out[t] - expected.numpy()).max() <= 0.51


def test_a_frame_anonymizer_needs_no_neighbour(video):
    out = anonymized_frames(make("frame"), video)
    assert all(frame.any() for frame in out)
    assert np.abs(out.astype(int) - video).mean() > 5  # not the raw picture


def test_the_film_shows_raw_beside_anonymised(squares, tmp_path):
    rows = choose_rows(read_rows(squares), 2)
    film = tmp_path / "film.mp4"
    count = before_after_film(make("motion"), rows, film)
    info = probe(film)
    assert count == info.frames == 20
    assert (info.width, info.height) == (2 * 240 + 8, 240)
    frames = np.stack(list(stream_video(film)))
    raw = np.stack(list(stream_video(rows[0].path)))
    left, right = frames[:, :, :240].astype(float), frames[:, :, -240:].astype(float)
    assert np.abs(left[5, ::8, ::8].mean() - raw[5].mean()) < 10
    for first in (0, 10):  # of each of the two videos
        assert right[first].max() < 25  # black, but for the codec
        assert left[first].max() > 100
    assert right[5].mean() > 20


def test_the_sheet_shows_stills_over_what_becomes_of_them(squares, tmp_path):
    rows = choose_rows(read_rows(squares), 3)
    path = tmp_path / "docs" / "sheet.png"
    before_after_sheet(make("motion", stride=2), rows, path, stills=4, columns=2)
    with Image.open(path) as image:
        assert image.format == "PNG"
        sheet = np.asarray(image)
    block = 4 * 126 - 6, 18 + 2 * 120 + 6  # 4 square stills of 120 px, gaps of 6
    assert sheet.shape == (2 * (block[1] + 18) + 6, 2 * (block[0] + 18) + 6, 3)
    raw = np.stack(list(stream_video(rows[0].path)))
    shown = np.linspace(2, 9, 4).round().astype(int)  # never the black start
    top = sheet[12 + 18 : 12 + 18 + 120, 12:]
    for place, number in enumerate(shown):
        still = top[:, 126 * place : 126 * place + 120]
        expected = np.asarray(Image.fromarray(raw[number]).resize((120, 120), Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(still, expected)
        below = sheet[12 + 18 + 126 : 12 + 18 + 246, 12 + 126 * place : 132 + 126 * place]
        assert below.any()
        assert np.abs(below.astype(int) - expected).mean() > 5
    assert (sheet[-200:-50, -200:-50] == sheet[0, 0]).all()  # the fourth place is empty


def test_the_chosen_rows_differ(squares):
    rows = read_rows(squares)
    chosen = choose_rows(rows, 2)
    assert {row.split for row in chosen} == {"test"}
    assert {row.action for row in chosen} == {"walk", "jump"}
    assert len({row.attributes["identity"] for row in chosen}) == 2
    assert len(choose_rows(rows, 99)) == 4
    assert choose_rows(list(reversed(rows)), 3) == choose_rows(rows, 3)


def test_an_inversion_sheet_shows_every_row_in_its_place(tmp_path):
    """Frames of one colour each: the tiles' middles, read back from the file, are those colours in order."""
    colours = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)  # row, column, RGB
    rows = np.broadcast_to(colours[:, :, None, None], (5, 3, 32, 48, 3)).copy()
    captions = {"pixelate": "24.5 dB, a line that is longer than all names"}
    shown = {"pixelate": (rows[1], rows[2]), "anonymized": (rows[3], rows[4])}
    inversion_sheet(rows[0], shown, tmp_path / "new" / "sheet.png", captions, tile_px=60)
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png").convert("RGB"))
    margin = sheet.shape[1] - 3 * (90 + GAP_PX)
    for place in range(5):
        top = GAP_PX + place * (60 + GAP_PX) + (place + 1) // 2 * 2 * GAP_PX
        for column in range(3):
            left = margin + column * (90 + GAP_PX)
            tile = sheet[top : top + 60, left : left + 90]
            assert np.array_equal(tile, np.broadcast_to(colours[place, column], tile.shape))
        words = sheet[top : top + 60, :margin]
        assert (words != PAPER).any()  # the row's name
        assert (words[:, -GAP_PX:] == PAPER).all()  # which ends before the pictures begin
    with pytest.raises(ValueError, match="anonymized: uint8"):
        inversion_sheet(rows[0], {"anonymized": (rows[1], rows[2][:2])}, tmp_path / "bad.png")
