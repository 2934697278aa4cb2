"""The strips: what they show, what they must not show, and that a browser can begin to play them at once."""

import shutil

import numpy as np
import pytest

from client.video.decode import stream_video
from client.video.encode import write_video
from client.video.rows import Row, read_rows, write_rows
from simulations.pictures import choose_rows
from simulations.report.collect import open_run
from simulations.report.page import render
from simulations.report.strips import MAX_BYTES, TILE_PX, is_synthetic, make_strips
from simulations.synthetic import SynthConfig, synthesize
from spact_models.networks import load_anonymizer


@pytest.fixture
def real_run(made_up_run, fast, tmp_path):
    """Its videos lie elsewhere, as filmed ones do."""
    return open_run(made_up_run(tmp_path / "run", fast, rounds=1))


@pytest.fixture
def drawn_run(made_up_run, squares, fast, tmp_path):
    """Its videos lie in the folder into which a run draws."""
    path = made_up_run(tmp_path / "drawn", fast, rounds=1, data=False)
    shutil.copytree(squares.parent, path / "synthetic")
    return open_run(path)


def frames_of(strip, tmp_path):
    (tmp_path / "strip.mp4").write_bytes(strip.video)
    return np.stack(list(stream_video(tmp_path / "strip.mp4"))).astype(float)


def raw_frames(run, size):
    """The first chosen video at the strip's size, without the frames that have no neighbour yet."""
    rows = read_rows(run.path / ("data.csv" if (run.path / "data.csv").exists() else "synthetic/manifest.csv"))
    raw = np.stack(list(stream_video(choose_rows(rows, 6)[0].path)))
    start = load_anonymizer(run.path / "checkpoints" / "round-0001.safetensors")[0].history
    return raw[start:].repeat(size // raw.shape[1], axis=1).repeat(size // raw.shape[2], axis=2).astype(float)


def test_real_footage_is_shown_anonymized_alone_and_nobody_is_named(real_run, tmp_path):
    made = make_strips(real_run)
    assert len(made.strips) == 4  # all test rows
    assert not any(strip.raw or strip.person for strip in made.strips)
    assert "Raw footage is not part of this page" in made.note
    assert not made.all_synthetic
    seen = frames_of(made.strips[0], tmp_path)
    assert seen.shape[1:3] == (TILE_PX, TILE_PX)
    raw = raw_frames(real_run, TILE_PX)
    assert len(seen) == len(raw)
    assert np.abs(seen - raw).mean() > 20
    page = render([real_run], [])
    assert "red" not in {word for strip in made.strips for word in strip.action.split()}
    assert "<span>raw</span>" not in page
    assert "Anonymized videos" in page


def test_raw_is_shown_beside_where_the_run_drew_its_videos_or_one_asks_for_it(real_run, drawn_run, tmp_path):
    for run, asked in ((drawn_run, False), (real_run, True)):
        made = make_strips(run, show_raw=asked)
        assert all(strip.raw and strip.person for strip in made.strips)
        assert made.all_synthetic == (run is drawn_run)
        seen = frames_of(made.strips[0], tmp_path)
        assert seen.shape[1:3] == (TILE_PX, 2 * TILE_PX + 4)
        left = seen[:, :, :TILE_PX]
        assert np.abs(left - raw_frames(run, TILE_PX)).mean() < 12  # but for scaling and the codec
        assert np.abs(left - seen[:, :, -TILE_PX:]).mean() > 20
    page = render([drawn_run], [])
    assert "the videos of this run are drawn, not filmed" in page
    assert "on the left raw, on the right" in page
    assert page.count("<span>raw</span><span>anonymized</span>") == 4
    assert page.count(": raw on the left, anonymized on the right") == 4
    assert "as filmed" not in page


def test_a_link_into_the_drawn_folder_does_not_make_footage_synthetic(drawn_run, squares):
    link = drawn_run.path / "synthetic" / "linked.mp4"
    link.symlink_to(read_rows(squares)[0].path)
    assert not is_synthetic(drawn_run.path, link)
    assert is_synthetic(drawn_run.path, drawn_run.path / "synthetic" / "videos" / "00.mp4")
    assert not is_synthetic(drawn_run.path, drawn_run.path / "synthetic" / ".." / ".." / "other.mp4")


def test_a_drawn_set_outside_the_run_is_shown_raw_and_footage_in_its_folder_is_not(
    made_up_run, squares, fast, tmp_path
):
    out = tmp_path / "set"
    rows = read_rows(synthesize(SynthConfig(clips=24, identities=4, sites=2, size_px=32, frames=10), out, workers=1))
    path = made_up_run(tmp_path / "run", fast, rounds=1, data=False)
    write_rows(rows, path / "data.csv")
    made = make_strips(open_run(path))
    assert made.all_synthetic
    assert all(strip.raw and strip.person for strip in made.strips)
    (tmp_path / "link.mp4").symlink_to(rows[0].path)
    assert is_synthetic(path, tmp_path / "link.mp4")
    moved = out.rename(tmp_path / "moved")
    drawn = moved / rows[0].path.relative_to(out)
    assert is_synthetic(path, drawn)

    footage = read_rows(squares)[0].path
    (moved / "videos" / "holiday.mp4").write_bytes(footage.read_bytes())  # not listed
    assert not is_synthetic(path, moved / "videos" / "holiday.mp4")
    copy = moved.parent / "copy.mp4"
    copy.write_bytes(drawn.read_bytes())  # drawn, but no mark above it
    assert not is_synthetic(path, copy)
    drawn.write_bytes(footage.read_bytes())  # under a listed name
    assert not is_synthetic(path, drawn)
    other = moved / rows[1].path.relative_to(out)
    assert is_synthetic(path, other)
    for damaged in ("", "[]", "{}", '{"format": "fedspact-synthetic", "format_version": 1, "videos": []}'):
        (moved / "synthetic.json").write_text(damaged)
        assert not is_synthetic(path, other)


def test_a_strip_begins_at_once_and_is_small(made_up_run, fast, tmp_path):
    """Noise does not compress: the hardest video there is, and a long one."""
    path = made_up_run(tmp_path / "run", fast, rounds=1, data=False)
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 96, 3), np.uint8)
    write_video(tmp_path / "noise.mp4", iter(noise), 12.5, crf=1)
    write_rows([Row(tmp_path / "noise.mp4", "noise", split="test")], path / "data.csv")
    strip = make_strips(open_run(path), show_raw=True).strips[0]
    assert len(strip.video) <= MAX_BYTES
    assert 0 < strip.video.index(b"moov") < strip.video.index(b"mdat")  # the index stands in front
    assert strip.seconds <= 4.0  # of 4.8
    assert (strip.width, strip.height) == (2 * 288 + 4, TILE_PX)
    assert strip.poster[:2] == b"\xff\xd8"


def test_what_cannot_be_shown_is_said(made_up_run, squares, fast, tmp_path):
    gone = made_up_run(tmp_path / "gone", fast, rounds=1, data=False)
    rows = read_rows(squares)
    lost = [Row(tmp_path / "no.mp4", "walk", split="test"), *(row for row in rows if row.split == "test")]
    write_rows(lost, gone / "data.csv")
    assert "1 more could not be read" in make_strips(open_run(gone)).note
    write_rows(lost[:1], gone / "data.csv")
    assert "none of the 1 chosen" in make_strips(open_run(gone)).note
    write_rows([row for row in rows if row.split == "train"], gone / "data.csv")
    assert "no held-out videos" in make_strips(open_run(gone)).note
    write_rows(rows, gone / "data.csv")
    (gone / "anonymizer.safetensors").write_text("no weights")
    assert "the anonymizer cannot be opened" in make_strips(open_run(gone)).note
