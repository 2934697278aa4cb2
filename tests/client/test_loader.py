from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from client.video import sampling
from client.video.cache import FrameCache
from client.video.decode import UnreadableVideo
from client.video.encode import write_video
from client.video.loader import ClipLoader
from client.video.rows import Row
from spact_models.errors import UserError
from spact_models.game_settings import BatchConfig, ClipConfig

SIZE = 16
CLASSES = ["jump", "walk"]
STEP = 6  # grey levels between two frames: a pixel tells which video (red) and which frame (green) it is of


def video(path, number, count=40):
    frames = [np.full((32, 32, 3), (20 * number + 10, STEP * t, 0), np.uint8) for t in range(count)]
    write_video(path, frames, 25, crf=1)
    return path


def who_and_when(frames):
    """``(..., S, S, 3)`` -> number of the video, number of the frame."""
    colours = np.asarray(frames, float).mean((-3, -2))
    return np.round((colours[..., 0] - 10) / 20).astype(int), np.round(colours[..., 1] / STEP).astype(int)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    actions = ["walk", "jump", None]
    return [Row(video(folder / f"{i}.mp4", i), action=actions[i % 3]) for i in range(7)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return FrameCache(tmp_path_factory.mktemp("cache"), SIZE)


def loader(rows, cache, clips=3, views=4, frames=5, stride=2, lead_in=1, **more):
    clip = ClipConfig(frames=frames, size_px=SIZE, stride_frames=stride)
    return ClipLoader(rows, CLASSES, cache, clip, BatchConfig(clips=clips, views=views), lead_in, **more)


def test_shapes_and_types(rows, cache):
    for batch in islice(loader(rows, cache).training(0), 3):
        assert batch.clips_BTHWC.shape == (3, 6, SIZE, SIZE, 3)
        assert batch.first_NTHWC.shape == batch.second_NTHWC.shape == (4, 2, SIZE, SIZE, 3)
        assert batch.clips_BTHWC.dtype == batch.first_NTHWC.dtype == batch.second_NTHWC.dtype == torch.uint8
        assert batch.labels_B.dtype == torch.int64


def test_a_view_of_several_frames_is_consecutive_frames_of_one_video(rows, cache):
    for batch in islice(loader(rows, cache, view_frames=3).training(0), 3):
        assert batch.first_NTHWC.shape == batch.second_NTHWC.shape == (4, 4, SIZE, SIZE, 3)
        for views in (batch.first_NTHWC, batch.second_NTHWC):
            video_NT, time_NT = who_and_when(views)
            assert np.all(video_NT == video_NT[:, :1])
            assert np.all(np.diff(time_NT) == 2)


def test_every_clip_is_consecutive_frames_of_one_video_under_its_own_label(rows, cache):
    starts = set()
    for batch in islice(loader(rows, cache).training(0), 30):
        who, when = who_and_when(batch.clips_BTHWC)
        assert (who == who[:, :1]).all()
        assert (np.diff(when) == 2).all()
        starts.update(when[:, 0].tolist())
        labels = [{"walk": 1, "jump": 0, None: -1}[rows[video].action] for video in who[:, 0]]
        assert batch.labels_B.tolist() == labels
    assert len(starts) > 15  # of 30 possible ones: random, from the first to the last
    assert min(starts) < 4
    assert max(starts) > 25


def test_an_epoch_shows_every_video_once_and_the_next_in_another_order(rows, cache):
    batches = islice(loader(rows, cache, clips=3, views=3).training(0), 14)  # 42 clips: 6 epochs of 7
    clips, views = [], []
    for batch in batches:
        clips += who_and_when(batch.clips_BTHWC)[0][:, 0].tolist()
        views += who_and_when(batch.first_NTHWC)[0][:, 0].tolist()
    for seen in (clips, views):
        epochs = [seen[i : i + 7] for i in range(0, 42, 7)]
        assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
    assert clips != views  # drawn independently


@pytest.mark.parametrize("views", [2, 3, 5, 6, 7])
def test_the_pairs_of_a_batch_are_of_different_videos_at_different_times(rows, cache, views):
    for batch in islice(loader(rows, cache, views=views).training(1), 12):
        first, first_time = who_and_when(batch.first_NTHWC)
        second, second_time = who_and_when(batch.second_NTHWC)
        assert (first == first[:, :1]).all()
        assert (first == second).all()
        assert len(set(first[:, 0].tolist())) == views
        assert (first_time[:, -1] != second_time[:, -1]).all()
        assert (np.diff(first_time) == 2).all()  # the lead-in


def test_the_seed_decides_everything(rows, cache, tmp_path):
    def numbers(seed, cache):
        return [
            torch.cat([x.flatten() for x in vars(batch).values()])
            for batch in islice(loader(rows, cache).training(seed), 6)
        ]

    again = FrameCache(tmp_path / "cache", SIZE)  # empty: a cold cache changes nothing
    assert all(torch.equal(a, b) for a, b in zip(numbers(5, cache), numbers(5, again), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(numbers(5, cache), numbers(6, cache), strict=True))


def test_a_batch_is_kept_when_the_next_is_read(rows, cache):
    batches = loader(rows, cache).training(0)
    first = next(batches)
    kept = first.clips_BTHWC.clone()
    next(batches)
    assert torch.equal(first.clips_BTHWC, kept)


def test_a_small_site_gives_smaller_batches(rows, cache):
    batch = next(loader(rows[:2], cache, clips=24, views=64).training(0))
    assert len(batch.clips_BTHWC) == len(batch.labels_B) == 2
    assert len(batch.first_NTHWC) == 2


def test_views_from_another_source(rows, cache, tmp_path):
    pictures = []
    for i in range(5):
        Image.fromarray(np.full((40, 30, 3), (20 * i + 10, 0, 0), np.uint8)).save(tmp_path / f"{i}.png")
        pictures.append(Row(tmp_path / f"{i}.png"))
    batch = next(loader(rows[:1], cache, clips=2, views=3, view_rows=pictures).training(0))
    assert len(batch.clips_BTHWC) == 1  # one clip video is enough when the views come from elsewhere
    assert batch.first_NTHWC.shape == (3, 2, SIZE, SIZE, 3)
    assert torch.equal(batch.first_NTHWC, batch.second_NTHWC)
    assert torch.equal(batch.first_NTHWC[:, 0], batch.first_NTHWC[:, 1])
    assert len(set(who_and_when(batch.first_NTHWC)[0][:, 0].tolist())) == 3


def test_a_video_in_two_rows_is_one_video_for_views(rows, cache):
    twice = [*rows[:3], *(Row(row.path, action="walk") for row in rows[:3])]
    for batch in islice(loader(twice, cache, views=6).training(0), 3):
        assert sorted(who_and_when(batch.first_NTHWC)[0][:, 0].tolist()) == [0, 1, 2]


def test_test_clips_are_the_uniform_ones_in_order(rows, cache):
    found = list(loader(rows, cache).test_clips(rows[:3], 4))
    assert [row for row, _ in found] == rows[:3]
    for number, (_, clips) in enumerate(found):
        assert (clips.shape, clips.dtype) == ((4, 6, SIZE, SIZE, 3), np.uint8)
        who, when = who_and_when(clips)
        assert (who == number).all()
        assert (when == sampling.test_clips(40, 5, 2, 1, 4)).all()
    (_, five), *_ = loader(rows, cache).test_clips(rows[:1])
    assert len(five) == 5


def test_a_short_video_is_reflected(cache, tmp_path):
    rows = [Row(video(tmp_path / f"{i}.mp4", i, count=4)) for i in range(2)]
    batch = next(loader(rows, cache, lead_in=0, stride=1).training(0))
    assert who_and_when(batch.clips_BTHWC)[1].tolist() == [[0, 1, 2, 3, 2]] * 2


def test_unknown_actions_are_named_with_both_lists(rows, cache):
    wrong = [*rows, Row(rows[0].path, action="wlak")]
    with pytest.raises(UserError) as caught:
        loader(wrong, cache)
    for words in ("'wlak'", "jump, walk", "jump, walk, wlak"):
        assert words in str(caught.value)
    with pytest.raises(UserError, match="wlak"):
        loader(rows, cache).label(wrong[-1])


def test_too_few_videos_are_refused(rows, cache):
    with pytest.raises(UserError, match="training rows = 0"):
        loader([], cache, view_rows=rows)
    for few in (rows[:1], [rows[0], Row(rows[0].path)]):
        with pytest.raises(UserError, match="at least 2 different"):
            loader(few, cache)
    with pytest.raises(UserError, match="videos for views = 0"):
        loader(rows, cache, view_rows=[])


def test_a_cache_of_another_size_is_refused(rows, tmp_path):
    with pytest.raises(ValueError, match="8 px"):
        loader(rows, FrameCache(tmp_path, 8))


def test_a_video_that_vanishes_is_never_skipped_silently(cache, tmp_path):
    rows = [Row(video(tmp_path / f"{i}.mp4", i)) for i in range(3)]
    batches = loader(rows, cache, clips=3).training(0)
    next(batches)
    rows[1].path.unlink()
    with pytest.raises(UnreadableVideo, match="no such file"):
        next(batches)
