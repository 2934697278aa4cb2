import os
import resource

import av
import numpy as np
import pytest

from client.video.decode import UnreadableVideo, probe, stream_video
from client.video.encode import write_video
from spact_models.errors import UserError

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 120, 40)]


def flat(colour, height=48, width=64):
    return np.full((height, width, 3), colour, np.uint8)


@pytest.mark.parametrize("fps", [1, 12.5, 25, 29.97, 120])
def test_what_is_written_is_read_back(tmp_path, fps):
    path = tmp_path / "new" / "colours.mp4"
    frames = [flat(colour) for colour in COLOURS]
    assert write_video(path, iter(frames), fps, crf=4) == len(frames)
    info = probe(path)
    assert (info.frames, info.width, info.height, info.rotation_degrees) == (7, 64, 48, 0)
    assert info.fps == pytest.approx(fps, rel=1e-3)
    assert info.seconds == pytest.approx(7 / fps, rel=1e-2)
    back = list(stream_video(path))
    assert len(back) == 7
    for wrote, read in zip(frames, back, strict=True):
        assert np.abs(wrote.astype(int) - read).max() <= 4


def test_motion_survives_at_the_default_quality(tmp_path):
    y, x = np.mgrid[:96, :128]
    frames = [
        np.stack([(x + 5 * t) % 256, 2 * y, 255 * (np.hypot(x - 20 - 5 * t, y - 48) < 15)], -1).astype(np.uint8)
        for t in range(16)
    ]
    write_video(tmp_path / "a.mp4", frames, 25)
    back = list(stream_video(tmp_path / "a.mp4"))
    errors = [[np.abs(wrote.astype(int) - read).mean() for read in back] for wrote in frames]
    assert np.argmin(errors, axis=1).tolist() == list(range(16))  # every frame in its place
    assert max(np.diag(errors)) < 6


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (47, 63), (1, 1)])
def test_odd_sides_are_padded_with_their_last_line(tmp_path, height, width):
    frame = flat((200, 30, 60), height, width)
    write_video(tmp_path / "a.mp4", [frame] * 3, 25, crf=4)
    (back, *_) = stream_video(tmp_path / "a.mp4")
    assert back.shape == (height + height % 2, width + width % 2, 3)
    assert np.abs(back.astype(int) - (200, 30, 60)).max() <= 6  # no black edge


def test_every_player_can_open_it(tmp_path):
    write_video(tmp_path / "a.mp4", [flat((10, 20, 30))] * 3, 25)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)  # BT.709, limited
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_the_same_frames_give_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", frames, 25)
    write_video(tmp_path / "b.mp4", frames, 25)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "no frames"),
        ([flat((0, 0, 0)), flat((0, 0, 0), 50)], "one size"),
        ([np.zeros((48, 64, 3))], "uint8"),
        ([np.zeros((48, 64), np.uint8)], "uint8"),
        ([np.zeros((0, 64, 3), np.uint8)], "uint8"),
    ],
)
def test_wrong_frames_leave_nothing_behind(tmp_path, frames, words):
    with pytest.raises(ValueError, match=words):
        write_video(tmp_path / "a.mp4", frames, 25)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("fps", "crf"), [(0, 23), (-1, 23), (float("nan"), 23), (1000, 23), (25, 52), (25, -1)])
def test_senseless_settings_are_refused(tmp_path, fps, crf):
    with pytest.raises(ValueError, match="must be"):
        write_video(tmp_path / "a.mp4", [flat((0, 0, 0))], fps, crf)


def test_a_source_that_fails_on_the_way_leaves_the_old_file(tmp_path):
    write_video(tmp_path / "a.mp4", [flat((9, 9, 9))] * 2, 25)
    before = (tmp_path / "a.mp4").read_bytes()

    def breaks():
        yield flat((0, 0, 0))
        raise UnreadableVideo(tmp_path / "source.mp4", "cut off")

    with pytest.raises(UnreadableVideo):
        write_video(tmp_path / "a.mp4", breaks(), 25)
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_place_that_cannot_be_written_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        write_video(tmp_path / "file" / "a.mp4", [flat((0, 0, 0))], 25)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_video(tmp_path / "folder.mp4", [flat((0, 0, 0))], 25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mp4"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    """A limit on file size refuses writes as a full disk does; in a child, because it binds the whole process."""
    rng = np.random.default_rng(0)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            write_video(tmp_path / "a.mp4", rng.integers(0, 256, (30, 96, 96, 3), dtype=np.uint8), 25, crf=4)
        except UserError as error:
            status = 0 if "cannot be written" in str(error) and not list(tmp_path.iterdir()) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
