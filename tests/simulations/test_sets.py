"""From rows to the judge's sets: which frames, which labels, who is painted over."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.held import (
    Read,
    attackable,
    attribute_labels,
    attributes_of,
    build_set,
    labels_of,
    lead_in_of,
    value_of,
)
from client.video.boxes import Box, write_boxes
from client.video.cache import FrameCache
from client.video.rows import Row, read_rows
from client.video.sampling import test_clips as uniform_clips
from spact_models.run_config import load_settings


@pytest.fixture
def clip(fast):
    return load_settings({**fast, "clip.stride_frames": 2}).clip


@pytest.fixture
def cache(tmp_path):
    return FrameCache(tmp_path / "cache", 16)


def train_rows(squares):
    return [row for row in read_rows(squares) if row.split == "train"]


def test_uniform_clips_and_views_in_order(squares, cache, clip):
    rows = train_rows(squares)[:5]
    rows.append(Row(rows[0].path.with_name("15.mp4")))
    made = build_set(rows, cache, clip, Read(2), {"action": labels_of(rows, "action", ["jump", "walk"])})
    assert made.clips_MTHWC.shape == (12, 5, 16, 16, 3)
    assert made.views_VKTHWC.shape == (6, 8, 2, 16, 16, 3)
    assert made.halves_V2THWC is None
    assert made.person_MTHW is None
    assert made.video_M.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert made.labels["action"].tolist() == [1, 0, 1, 0, 1, -1]
    assert made.group_V.tolist() == [0, 1, 2, 3, 0, -1]  # cameras 0 1 2 3 0, unknown
    video = torch.from_numpy(cache.frames(rows[2].path).copy())
    times = [0, 1, 3, 4, 5, 6, 8, 9]
    before = [1, 2, 1, 2, 3, 4, 6, 7]  # the start has none before: the neighbour after it
    assert torch.equal(made.views_VKTHWC[2, :, 1], video[times])
    assert torch.equal(made.views_VKTHWC[2, :, 0], video[torch.tensor(before)])


def test_a_longer_history_gets_its_frames_in_front(squares, cache, clip):
    rows = train_rows(squares)[:2]
    made = build_set(rows, cache, clip, Read(1, lead_in=3, halves=True), {})
    video = torch.from_numpy(cache.frames(rows[1].path).copy())
    assert made.lead_in_frames == 3
    assert torch.equal(made.clips_MTHWC[1], video[uniform_clips(10, clip.frames, clip.stride_frames, 3, 1)[0]])
    assert made.halves_V2THWC.shape == (2, 2, 7, 16, 16, 3)
    assert clip.stride_frames == 2
    before = [[6, 4, 1, 0], [5, 3, 2, 1], [3, 1, 1, 3], [2, 0, 2, 4], [1, 1, 3, 5], [0, 2, 4, 6], [2, 4, 6, 8],
              [3, 5, 7, 9]]  # fmt: skip
    assert torch.equal(made.views_VKTHWC[1], video[torch.tensor(before)])


def test_the_lead_in_is_what_the_settings_anonymizer_consumes():
    for kind, back, expected in (("frame", 4, 1), ("motion", 1, 1), ("motion", 4, 4)):
        settings = load_settings({"networks.anonymizer": kind, "networks.motion_frames": back})
        assert lead_in_of(settings) == expected


def test_the_two_halves_share_no_frame(squares, cache, clip):
    rows = train_rows(squares)[:2]
    made = build_set(rows, cache, clip, Read(1, halves=True), {})
    assert made.halves_V2THWC.shape == (2, 2, 5, 16, 16, 3)
    video = cache.frames(rows[1].path)
    assert len(video) == 10

    def places(frames):
        return {int(np.argmin([np.abs(one.astype(int) - frame).sum() for one in video])) for frame in frames.numpy()}

    early, late = (places(made.halves_V2THWC[1, side]) for side in (0, 1))
    assert max(early) < 5 <= min(late)


def with_boxes(row, folder, left):
    path = folder / f"{row.path.stem}.csv"
    write_boxes(path, {frame: [Box(left, 0.25, left + 0.25, 0.75)] for frame in range(0, 10, 2)})  # every other frame
    return replace(row, boxes=path)


def test_masks_and_blackened_frames_follow_the_boxes(squares, cache, tmp_path):
    rows = [with_boxes(row, tmp_path, 0.25 * place) for place, row in enumerate(train_rows(squares)[:3])]
    clip = load_settings({"clip.frames": 4, "clip.size_px": 16, "clip.stride_frames": 1}).clip
    plain = build_set(rows, cache, clip, Read(2, masks=True, halves=True), {})
    black = build_set(rows, cache, clip, Read(2, masks=True, halves=True, blackened=True), {})
    inside = torch.zeros(3, 16, 16, dtype=torch.bool)
    for place in range(3):
        inside[place, 4:12, 4 * place : 4 * place + 4] = True
    start = torch.tensor([0, 5])  # clips of 5 frames in videos of 10
    for number, mask_THW in enumerate(plain.person_MTHW):
        video, first = number // 2, int(start[number % 2])
        for t, mask in enumerate(mask_THW):
            expected = inside[video] if (first + t) % 2 == 0 else torch.zeros(16, 16, dtype=torch.bool)
            assert torch.equal(mask, expected)
    hidden = plain.clips_MTHWC.masked_fill(plain.person_MTHW[..., None], 0)
    assert torch.equal(black.clips_MTHWC, hidden)
    assert torch.equal(black.person_MTHW, plain.person_MTHW)
    for name in ("views_VKTHWC", "halves_V2THWC"):
        darker = getattr(plain, name).ne(getattr(black, name))
        assert darker.any()
        assert (getattr(black, name)[darker] == 0).all()


def test_a_still_image_is_one_frame(cache, clip, tmp_path):
    rows = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (20, 30), (80 * number, 10, 200)).save(path)
        rows.append(Row(path, split="train", attributes={"a4_gender": str(number % 2)}))
    labels = attribute_labels(rows, ["a4_gender"])
    made = build_set(rows, cache, clip, Read(5), {}, attributes_of(rows, labels))
    assert made.clips_MTHWC.shape == (3, 1, 16, 16, 3)
    assert made.lead_in_frames == 0
    assert made.video_M.tolist() == [0, 1, 2]
    assert made.clips_MTHWC[2, 0, 5, 5].tolist() == [160, 10, 200]
    assert made.attributes_VA.tolist() == [[0], [1], [0]]


def row(split, **look):
    return Row(Path("/v/a.mp4"), source="s", split=split, attributes=look)


def test_a_column_is_attackable_when_test_asks_for_what_train_shows():
    red, blue = row("train", hat="red"), row("train", hat="blue")
    assert attackable([red, blue, row("train")], [row("test", hat="red")], "hat") == ["blue", "red"]
    assert attackable([red], [row("test", hat="red")], "hat") == []  # nothing to tell apart
    assert attackable([red, blue], [row("test", hat="green")], "hat") == []  # never seen
    assert attackable([red, blue], [row("test")], "hat") == []
    assert attackable([red, blue], [row("test", hat="red")], "coat") == []
    assert labels_of([red, blue, row("test")], "hat", ["blue", "red"]).tolist() == [1, 0, -1]
    assert (value_of(red, "source"), value_of(red, "site"), value_of(red, "hat")) == ("s", None, "red")


def test_columns_become_yes_or_no_labels():
    rows = [
        row("train", face="1", gender="1+2", tattoo="0", hat="red"),
        row("train", face="0", gender="0", tattoo="0", hat="blue"),
        row("train", gender="2"),
    ]
    labels = attribute_labels(rows, ["face", "gender", "tattoo", "hat"])
    assert labels == ["face", "gender=1", "gender=2", "hat=blue", "hat=red"]  # nobody has a tattoo: nothing to learn
    assert attributes_of(rows, labels).tolist() == [[1, 1, 1, 0, 1], [0, 0, 0, 1, 0], [-1, 0, 1, -1, -1]]
    assert attributes_of(rows, []).shape == (3, 0)
