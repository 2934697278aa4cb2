import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from client.video.decode import UnreadableVideo, check_file, decode_image, decode_video, probe, stream_video
from client.video.encode import write_video


def corners(height=48, width=64):
    """Four quarters: red green / blue white."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[: height // 2, : width // 2] = (255, 0, 0)
    frame[: height // 2, width // 2 :] = (0, 255, 0)
    frame[height // 2 :, : width // 2] = (0, 0, 255)
    frame[height // 2 :, width // 2 :] = (255, 255, 255)
    return frame


def letters(picture):
    """The quarters of a picture, row by row, by colour."""
    y, x = picture.shape[0] // 2, picture.shape[1] // 2
    names = {(True, False, False): "r", (False, True, False): "g", (False, False, True): "b", (True,) * 3: "w"}
    quarters = [picture[:y, :x], picture[:y, x:], picture[y:, :x], picture[y:, x:]]
    return "".join(names[tuple(bool(value > 128) for value in quarter.mean((0, 1)))] for quarter in quarters)


def noise(count, height=96, width=128, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write(
    path, frames, codec="libx264", pix_fmt="yuv420p", pts=None, options=None, movflags="", sound=False, turn=None
):
    """Any kind of file, with the library itself: what write_video does not make."""
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames[0].shape[:2] if len(frames) else (48, 64)
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000 if pts else 25)
        if turn is not None:
            stream.set_display_rotation(turn)
        if sound:
            add_sound(container)
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame))
            picture.pts, picture.time_base = (pts[i] if pts else i), stream.codec_context.time_base
            container.mux(stream.encode(picture))
        if len(frames):
            container.mux(stream.encode(None))
    return path


def add_sound(container, seconds=1):
    stream = container.add_stream("aac", rate=16000)
    for i in range(seconds * 16):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 1000 * i
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def refused(path, *words):
    """Every way in refuses the file, names it and says why."""
    for read in (probe, lambda path: decode_video(path, 32), lambda path: list(stream_video(path))):
        with pytest.raises(UnreadableVideo) as caught:
            read(path)
        assert caught.value.path == path
        for word in words:
            assert word in caught.value.reason, caught.value.reason
        assert str(path) in str(caught.value)
        assert caught.value.reason in str(caught.value)


def refused_as_a_whole(path, *words):
    """The first frames are fine, the file is not."""
    with pytest.raises(UnreadableVideo) as caught:
        decode_video(path, 32)
    assert all(word in caught.value.reason for word in words), caught.value.reason
    with pytest.raises(UnreadableVideo):
        list(stream_video(path))


# --- what is decoded rightly


def test_frames_are_squashed_whole_to_a_square(tmp_path):
    write_video(tmp_path / "a.mp4", [corners(48, 128)] * 5, 25, crf=4)
    frames = decode_video(tmp_path / "a.mp4", 32)
    assert (frames.shape, frames.dtype) == ((5, 32, 32, 3), np.uint8)
    assert [letters(frame) for frame in frames] == ["rgbw"] * 5


def test_scaling_is_the_mean_of_what_a_pixel_covers(tmp_path):
    smooth = np.asarray(Image.fromarray(noise(1, 12, 16)[0]).resize((256, 192), Image.Resampling.BICUBIC))
    write_video(tmp_path / "a.mp4", [smooth] * 2, 25, crf=1)
    native = next(stream_video(tmp_path / "a.mp4")).astype(float)
    slow = native.reshape(32, 6, 32, 8, 3).mean((1, 3))
    assert np.abs(decode_video(tmp_path / "a.mp4", 32)[0] - slow).mean() < 2.5


def test_every_frame_is_there_once_and_in_order(tmp_path):
    frames = [np.full((48, 64, 3), 8 * t, np.uint8) for t in range(30)]
    write_video(tmp_path / "a.mp4", frames, 25, crf=4)
    levels = decode_video(tmp_path / "a.mp4", 16).mean((1, 2, 3))
    assert np.abs(levels - 8 * np.arange(30)).max() < 4


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_change_nothing(tmp_path, threads):
    write_video(tmp_path / "a.mp4", noise(40), 25)
    assert (decode_video(tmp_path / "a.mp4", 32, threads) == decode_video(tmp_path / "a.mp4", 32, 1)).all()


@pytest.mark.parametrize("size_px", [1, 17, 33, 112, 300])
def test_any_working_size(tmp_path, size_px):
    write_video(tmp_path / "a.mp4", [corners()] * 2, 25, crf=4)
    frames = decode_video(tmp_path / "a.mp4", size_px)
    assert frames.shape == (2, size_px, size_px, 3)
    if size_px > 1:
        assert letters(frames[0]) == "rgbw"


@pytest.mark.parametrize(("turn", "expected"), [(0, "rgbw"), (90, "gwrb"), (180, "wbgr"), (270, "brwg"), (-90, "brwg")])
def test_a_turned_video_is_turned_upright(tmp_path, turn, expected):
    """Counterclockwise by ``turn``; the file is written with that display matrix."""
    path = write(tmp_path / "a.mp4", [corners()] * 3, options={"crf": "4"}, turn=turn)
    assert letters(decode_video(path, 32)[0]) == expected
    native = next(stream_video(path))
    assert letters(native) == expected
    info = probe(path)
    assert info.rotation_degrees == turn % 360
    assert (info.height, info.width) == native.shape[:2] == ((64, 48) if turn % 180 else (48, 64))


MATRICES = {  # a b c d of x' = a x + c y, y' = b x + d y, as phones and front cameras write them
    "rgbw": (1, 0, 0, 1),
    "brwg": (0, 1, -1, 0),  # a phone held upright
    "wbgr": (-1, 0, 0, -1),
    "gwrb": (0, -1, 1, 0),
    "grwb": (-1, 0, 0, 1),  # mirrored
    "bwrg": (1, 0, 0, -1),
    "rbgw": (0, 1, 1, 0),
    "wgbr": (0, -1, -1, 0),
}


@pytest.mark.parametrize("expected", MATRICES)
def test_all_eight_display_matrices(tmp_path, expected):
    """The matrix is patched into the track header, so this does not rest on the writer's idea of a turn."""
    path = tmp_path / "a.mp4"
    write_video(path, [corners()] * 2, 25, crf=4)
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # version and flags, 3 times, id, ... then the matrix
    unit = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    assert content[place : place + 36] == unit
    a, b, c, d = (0x10000 * value for value in MATRICES[expected])
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(content)
    assert letters(decode_video(path, 32)[0]) == expected


def test_variable_frame_rate_keeps_every_frame(tmp_path):
    times = [0, 40, 80, 500, 540, 2000, 2010, 2020]
    path = write(tmp_path / "a.mp4", [corners()] * len(times), pts=times)
    assert len(decode_video(path, 16)) == len(times)
    assert probe(path).frames == len(times)
    assert probe(path).seconds == pytest.approx(2.03, abs=0.05)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("libx265", "yuv420p10le", ".mp4"),
        ("libx264", "yuv420p10le", ".mkv"),
        ("libx264", "yuv444p", ".mp4"),
        ("ffv1", "yuv422p10le", ".mkv"),
        ("mpeg4", "yuv420p", ".avi"),
        ("mjpeg", "yuvj420p", ".avi"),
        ("libvpx-vp9", "yuv420p", ".webm"),
        ("mpeg2video", "yuv420p", ".ts"),
    ],
)
def test_depths_codecs_and_containers(tmp_path, codec, pix_fmt, suffix):
    if codec not in av.codecs_available:
        pytest.skip(f"this build of the library has no {codec}")
    path = write(tmp_path / f"a{suffix}", [corners(96, 128)] * 6, codec, pix_fmt)
    frames = decode_video(path, 32)
    assert len(frames) == 6
    assert {letters(frame) for frame in frames} == {"rgbw"}
    assert probe(path).frames == 6
    assert probe(path).fps == pytest.approx(25, rel=0.05)


@pytest.mark.parametrize("pix_fmt", ["gray", "gray10le"])
def test_greyscale_has_three_equal_colours(tmp_path, pix_fmt):
    ramp = np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], 48, 0).repeat(3, 2)
    path = write(tmp_path / "a.mkv", [ramp] * 2, "ffv1", pix_fmt)
    frames = decode_video(path, 64).astype(int)
    assert np.abs(frames - frames[..., :1]).max() <= 2
    assert np.abs(frames[0, 32, :, 0] - ramp[0, :, 0]).max() <= 4


@pytest.mark.parametrize(("height", "width"), [(47, 63), (1, 7), (33, 500)])
def test_odd_sizes(tmp_path, height, width):
    path = write(tmp_path / "a.mkv", [np.full((height, width, 3), 200, np.uint8)] * 2, "ffv1", "bgr0")
    assert np.abs(decode_video(path, 32).astype(int) - 200).max() <= 2
    assert next(stream_video(path)).shape == (height, width, 3)


def test_one_frame(tmp_path):
    write_video(tmp_path / "a.mp4", [corners()], 25, crf=4)
    assert decode_video(tmp_path / "a.mp4", 32).shape == (1, 32, 32, 3)
    assert probe(tmp_path / "a.mp4").frames == 1


def test_sound_beside_the_pictures_is_ignored(tmp_path):
    path = write(tmp_path / "a.mkv", [corners()] * 5, sound=True)  # 0.2 s of pictures, 1 s of sound
    assert len(decode_video(path, 32)) == 5


def test_frames_come_as_a_stream(tmp_path):
    write_video(tmp_path / "a.mp4", noise(20), 25)
    stream = stream_video(tmp_path / "a.mp4")
    first = next(stream)
    kept = first.copy()
    next(stream)
    assert (first == kept).all()  # memory of its own
    stream.close()


def test_a_name_is_a_file_and_never_a_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", [corners()], 25)
    (tmp_path / "a.mp4").rename(tmp_path / "concat:b.mp4")
    assert len(decode_video(type(tmp_path)("concat:b.mp4"), 16)) == 1


# --- what is refused, and how it is said


def test_missing_empty_and_folder(tmp_path):
    refused(tmp_path / "gone.mp4", "no such file")
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "empty")
    (tmp_path / "folder.mp4").mkdir()
    refused(tmp_path / "folder.mp4", "folder")
    refused(tmp_path / "empty.mp4" / "below.mp4", "cannot be read")


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    refused(tmp_path / "pipe.mp4", "regular")


@pytest.mark.parametrize("name", ["a.mp4", "a.txt", "a.avi"])
def test_text_is_not_a_video(tmp_path, name):
    """The library would gladly show a .txt file as a film of a terminal."""
    (tmp_path / name).write_text("this is no video\n" * 100)
    refused(tmp_path / name, "not a video")


def test_random_bytes_are_not_a_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(noise(1).tobytes())
    refused(tmp_path / "a.mp4")


def test_a_playlist_does_not_lead_to_other_files(tmp_path):
    write(tmp_path / "secret.ts", [corners()] * 3)
    (tmp_path / "a.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n")
    refused(tmp_path / "a.m3u8", "not a video")


def test_sound_alone(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        add_sound(container)
    refused(tmp_path / "a.mp4", "no video", "audio")


def test_a_film_without_frames(tmp_path):
    path = write(tmp_path / "a.avi", [], "mpeg4")
    refused(path)


def test_no_permission(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, [corners()], 25)
    path.chmod(0)
    if os.geteuid():
        refused(path, "no permission")
        return
    child = os.fork()  # root may read everything: look as nobody
    if child == 0:
        status = 1
        try:
            os.setuid(65534)
            refused(path, "no permission")
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_cut_off_before_the_index(tmp_path):
    """MP4 with its index at the end: nothing can be found in the rest."""
    path = write(tmp_path / "a.mp4", noise(20))
    path.write_bytes(path.read_bytes()[:-3000])
    refused(path, "cut off")


def test_a_container_that_ends_after_its_header(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    refused(tmp_path / "a.mkv", "cut off, or no video")


@pytest.mark.parametrize(("suffix", "movflags"), [(".mp4", "+faststart"), (".mkv", ""), (".avi", "")])
def test_cut_off_in_the_middle(tmp_path, suffix, movflags, caplog):
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    path = write(tmp_path / f"a{suffix}", noise(100), codec, movflags=movflags)
    content = path.read_bytes()
    assert len(decode_video(path, 16)) == 100
    path.write_bytes(content[: len(content) // 2])
    refused_as_a_whole(path, "cut off", "of 4.0 s")
    assert not caplog.records
    path.write_bytes(content[: int(len(content) * 0.96)])
    assert 88 <= len(decode_video(path, 16)) < 100
    assert str(path) in caplog.text
    assert "the rest is used" in caplog.text


def test_broken_in_the_middle(tmp_path, caplog):
    path = write(tmp_path / "a.mp4", noise(100), options={"g": "10"}, movflags="+faststart")
    content = path.read_bytes()

    def zeroed(share):
        start, length = len(content) // 3, int(share * len(content))
        path.write_bytes(content[:start] + bytes(length) + content[start + length :])

    zeroed(0.3)
    refused_as_a_whole(path, "damaged")
    assert not caplog.records
    zeroed(0.03)
    assert 90 <= len(decode_video(path, 16)) < 100
    assert "damaged" in caplog.text


def test_concealed_bit_errors_are_no_damage(tmp_path):
    path = write(tmp_path / "a.mp4", noise(50), options={"g": "10"}, movflags="+faststart")
    content = bytearray(path.read_bytes())
    for place in np.random.default_rng(0).integers(len(content) // 2, len(content), 20):
        content[place] ^= 0x55
    path.write_bytes(content)
    assert len(decode_video(path, 16)) >= 45


def test_an_unreadable_video_survives_a_process_border(tmp_path):
    import pickle

    error = UnreadableVideo(tmp_path / "a.mp4", "cut off")
    again = pickle.loads(pickle.dumps(error))
    assert (again.path, again.reason) == (error.path, error.reason)


def test_check_file_gives_the_status(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    assert check_file(tmp_path / "a").st_size == 3


# --- images


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
def test_an_image_is_a_video_of_one_frame(tmp_path, suffix):
    Image.fromarray(corners(240, 320)).save(tmp_path / f"a{suffix}")
    frames = decode_image(tmp_path / f"a{suffix}", 32)
    assert (frames.shape, frames.dtype) == ((1, 32, 32, 3), np.uint8)
    assert letters(frames[0]) == "rgbw"


@pytest.mark.parametrize(("orientation", "expected"), [(1, "rgbw"), (3, "wbgr"), (6, "brwg"), (8, "gwrb"), (2, "grwb")])
def test_exif_orientation(tmp_path, orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(corners(240, 320)).save(tmp_path / "a.jpg", exif=exif)
    assert letters(decode_image(tmp_path / "a.jpg", 32)[0]) == expected


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_modes_of_images(tmp_path, mode):
    grey = np.repeat(np.array([[0, 255]], np.uint8), 16, 1).repeat(32, 0)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    image = deep if mode == "I;16" else Image.fromarray(grey).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path)
    levels = decode_image(path, 16)[0].mean((0, 2))
    assert levels[:6].max() < 10
    assert levels[-6:].min() > 245


def test_bad_images(tmp_path):
    path = tmp_path / "a.jpg"
    for content, word in [(b"", "empty"), (b"no image" * 50, "not an image")]:
        path.write_bytes(content)
        with pytest.raises(UnreadableVideo, match=word):
            decode_image(path, 16)
    Image.fromarray(noise(1, 200, 200)[0]).save(path)
    path.write_bytes(path.read_bytes()[:8000])
    with pytest.raises(UnreadableVideo, match="damaged"):
        decode_image(path, 16)
    with pytest.raises(UnreadableVideo, match="no such file"):
        decode_image(tmp_path / "gone.jpg", 16)
