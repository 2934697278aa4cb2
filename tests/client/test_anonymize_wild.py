"""What reaches ``fedspact anonymize`` outside a laboratory: turned phones, HDR, 8K, cameras that drop, hours."""

import contextlib
import http.server
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from client.anonymize.source import open_source
from client.video.decode import UnreadableVideo, probe, stream_video
from fedspact import main

ROOT = Path(__file__).parents[2]
MANY_MINUTES = 30  # of video in the slow test: 45,000 frames


@pytest.fixture(scope="module")
def model(tmp_path_factory, write_model):
    return write_model(tmp_path_factory.mktemp("model") / "anonymizer.safetensors")


def run(model, source, out, *more):
    return main(["anonymize", str(source), "-o", str(out), "--model", str(model), *more])


def told(out):
    return json.loads(out.with_name(f"{out.name}.json").read_text())


def moving(count, height, width):
    """A bright square on black, going right: what turns, shows."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for number, frame in enumerate(frames):
        left = (4 * number) % (width - 8)
        frame[4:12, left : left + 8] = 255
    return frames


def frames_of(path):
    with av.open(str(path)) as file:
        return list(file.decode(video=0))


def write(path, frames, codec="libx264", pix_fmt="yuv420p", turn=0, container=None, **context):
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        if turn:
            stream.set_display_rotation(turn)
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_turned_video_is_delivered_upright_and_is_anonymised_upright(model, tmp_path, turn):
    """The same pictures, stored as they are or turned with the matrix that turns them back: one answer."""
    frames = moving(8, 32, 64)
    stored = np.ascontiguousarray(np.rot90(frames, -turn // 90, axes=(1, 2)))  # shown turned back by the matrix
    write(tmp_path / "plain.mp4", frames)
    write(tmp_path / "turned.mp4", stored, turn=turn)
    for name in ("plain", "turned"):
        assert run(model, tmp_path / f"{name}.mp4", tmp_path / f"{name}-out.mkv", "--codec", "ffv1") == 0
    out = probe(tmp_path / "turned-out.mkv")
    assert (out.height, out.width, out.rotation_degrees) == (32, 64, 0)
    plain, turned = (np.stack(list(stream_video(tmp_path / f"{name}-out.mkv"))) for name in ("plain", "turned"))
    assert plain[4:].std() > 1  # there is something to compare
    apart = np.abs(plain.astype(int) - turned).mean()  # the two files were compressed apart
    assert apart < 3
    assert np.abs(plain.astype(int) - plain[:, ::-1, ::-1]).mean() > 2 * apart  # upside down would be seen


def test_high_dynamic_range_is_read_like_training_reads_it_and_is_tagged_as_ordinary_video(model, tmp_path):
    pq, bt2020, matrix = 16, 9, 9  # SMPTE ST 2084, ITU-R BT.2020, its non-constant luminance
    source = write(tmp_path / "hdr.mkv", moving(6, 64, 64), "ffv1", "yuv420p10le",
                   color_trc=pq, color_primaries=bt2020, colorspace=matrix)  # fmt: skip
    with av.open(str(source)) as file:
        assert file.streams.video[0].codec_context.color_trc == pq  # the file is what it says
    assert run(model, source, tmp_path / "out.mp4") == 0
    with av.open(str(tmp_path / "out.mp4")) as file:
        context = file.streams.video[0].codec_context
        assert context.pix_fmt == "yuv420p"
        assert context.color_trc != pq
    assert told(tmp_path / "out.mp4")["frames"] == 6


def test_eight_k_comes_back_at_its_size_or_at_the_height_asked_for(model, tmp_path):
    source = write(tmp_path / "8k.avi", moving(3, 4320, 7680), "mjpeg", "yuvj420p")
    assert run(model, source, tmp_path / "small.mp4", "--height", "240") == 0
    out = probe(tmp_path / "small.mp4")
    assert (out.height, out.width) == (240, 428)  # even, rounded up
    assert run(model, source, tmp_path / "out.mkv", "--codec", "ffv1") == 0
    out = probe(tmp_path / "out.mkv")
    assert (out.height, out.width) == (4320, 7680)


def test_each_picture_that_will_not_decode_is_black_at_its_time_though_others_come_between(model, tmp_path):
    """H.264 sends pictures out of their order: one is shown after a loss while another loss is still to come."""
    rng = np.random.default_rng(0)
    frames = np.clip(moving(48, 64, 64).astype(int) + rng.integers(0, 60, (48, 64, 64, 3)), 0, 255).astype(np.uint8)
    content = write(tmp_path / "whole.mp4", frames).read_bytes()
    start = content.find(b"mdat")
    length = content.find(b"moov", start) - start
    middle, some = start + length // 2, length // 10
    spoiled = content[:middle] + bytes(some) + content[middle + some :]
    (tmp_path / "spoiled.mp4").write_bytes(spoiled)
    assert run(model, tmp_path / "spoiled.mp4", tmp_path / "out.mkv", "--codec", "ffv1") == 3
    found = told(tmp_path / "out.mkv")
    assert found["losses"]["damaged"] >= 2
    assert found["frames"] == found["losses"]["packets"] == 48
    times = [frame.time for frame in frames_of(tmp_path / "out.mkv")]
    assert np.allclose(np.diff(times), 1 / 25, atol=2e-3)  # no picture is held over a gap


def test_av1_out(model, tmp_path):
    source = write(tmp_path / "in.mp4", moving(6, 64, 64))
    assert run(model, source, tmp_path / "out.mkv", "--codec", "av1") == 0
    with av.open(str(tmp_path / "out.mkv")) as file:
        assert "av1" in file.streams.video[0].codec_context.name or "dav1d" in file.streams.video[0].codec_context.name
        assert sum(1 for _ in file.decode(video=0)) == 6


def test_a_video_of_no_length_is_refused_and_leaves_nothing(model, tmp_path, capsys):
    (tmp_path / "empty.mp4").touch()
    write(tmp_path / "no-frames.mkv", moving(0, 16, 16))
    for name in ("empty.mp4", "no-frames.mkv"):
        assert run(model, tmp_path / name, tmp_path / "out.mp4") == 2
        assert name in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_a_model_of_another_version_is_refused(model, tmp_path, capsys):
    with safe_open(model, "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    newer = {**header, **{name: "99" for name in header if name == "format_version"}}
    content = json.loads(header["fedspact"]) if "fedspact" in header else None
    if content is not None:
        newer["fedspact"] = json.dumps({**content, "format_version": 99})
    assert newer != header
    save_file(tensors, tmp_path / "newer.safetensors", newer)
    source = write(tmp_path / "in.mp4", moving(4, 32, 32))
    assert run(tmp_path / "newer.safetensors", source, tmp_path / "out.mp4") == 2
    said = capsys.readouterr().err
    assert "99" in said
    assert "newer.safetensors" in said
    assert not (tmp_path / "out.mp4").exists()


class _Camera(http.server.ThreadingHTTPServer):
    """Sends its parts one a connection, breaking off after each (with an error: more was promised); then it is gone."""

    def __init__(self, parts, promised=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.parts, self.promised, self.asked, self.lock = list(parts), promised, 0, threading.Lock()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with self.server.lock:
            self.server.asked += 1
            part = self.server.parts.pop(0) if self.server.parts else None
        if part is None:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "video/mp2t")
        if self.server.promised is not None:
            self.send_header("Content-Length", str(self.server.promised))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_):
        pass


def test_an_address_that_drops_and_comes_back_is_black_in_between(model, tmp_path):
    part = write(tmp_path / "part.ts", moving(20, 32, 32), container="mpegts").read_bytes()
    camera = _Camera([part, part])
    threading.Thread(target=camera.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{camera.server_port}/live.ts"
        status = run(model, address, tmp_path / "out.mkv", "--retry-seconds", "2")
    finally:
        camera.shutdown()
        camera.server_close()
    assert status == 3
    found = told(tmp_path / "out.mkv")
    assert found["losses"]["reconnects"] == 1
    assert found["losses"]["cut_off"].startswith("silent for 2 s")
    assert camera.asked >= 3  # it was looked for again after the second break, too
    black = found["black_frames"]
    assert black["start"] == 2
    assert black["lost"] >= 2  # while it was silent, once and again
    assert black["after loss"] == 2  # no frame before the break is a predecessor of one after it
    assert found["frames"] == 40 + black["lost"]
    frames = list(stream_video(tmp_path / "out.mkv"))
    assert len(frames) == found["frames"]
    assert sum(frame.max() > 30 for frame in frames) == 36


def test_an_address_that_never_answers_is_told(model, tmp_path, capsys):
    camera = _Camera([])
    threading.Thread(target=camera.serve_forever, daemon=True).start()
    try:
        address = f"http://user:secret@127.0.0.1:{camera.server_port}/live.ts"
        assert run(model, address, tmp_path / "out.mkv") == 2
    finally:
        camera.shutdown()
        camera.server_close()
    said = capsys.readouterr().err
    assert "cannot be reached" in said
    assert "secret" not in said
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def sending(*parts, promised=None):
    """``alice:s3cret@127.0.0.1:PORT`` of a camera that sends these parts."""
    camera = _Camera(parts, promised)
    threading.Thread(target=camera.serve_forever, daemon=True).start()
    try:
        yield f"alice:s3cret@127.0.0.1:{camera.server_port}"
    finally:
        camera.shutdown()
        camera.server_close()


def test_a_cameras_password_and_token_are_told_nowhere(model, tmp_path, capfd, caplog):
    caplog.set_level(logging.INFO)
    part = write(tmp_path / "part.ts", moving(20, 32, 32), container="mpegts").read_bytes()
    with sending(part, promised=10**7) as place:
        address = f"http://{place}/live.ts?key=t0ken"
        assert run(model, address, tmp_path / "out" / "live.mkv", "--retry-seconds", "1") == 3
    assert "live.ts: the stream dropped (" in caplog.text
    assert "cannot be reached" in caplog.text
    assert told(tmp_path / "out" / "live.mkv")["losses"]["cut_off"].startswith("silent for 1 s (")
    sound = only_sound(tmp_path / "sound.ts").read_bytes()
    with sending(sound, sound) as place:
        words = ["-o", str(tmp_path / "out"), "--model", str(model)]
        assert main(["anonymize", f"http://{place}?key=t0ken", f"http://{place}/b?key=t0ken", *words]) == 1
        refused = json.loads((tmp_path / "out" / "anonymize.json").read_text())["refused"]
        assert ["holds no video" in one["reason"] for one in refused] == [True, True]
    with sending(sound) as place, pytest.raises(UnreadableVideo) as caught:
        list(open_source(f"http://{place}/live.ts?key=t0ken", 16).events())
    said = str(caught.value)
    said += "".join([*capfd.readouterr(), caplog.text, *(path.read_text() for path in tmp_path.rglob("*.json"))])
    said += "".join(str(path) for path in tmp_path.rglob("*"))
    assert "127.0.0.1" in said
    for secret in ("s3cret", "alice", "t0ken"):
        assert secret not in said


def only_sound(path):
    with av.open(str(path), "w", format="mpegts") as file:
        stream = file.add_stream("mp2", rate=48000, layout="mono")
        for number in range(40):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), "s16", "mono")
            frame.rate, frame.pts = 48000, 1152 * number
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


PEAK = """
import sys
from fedspact import main
from spact_models.resident import peak_rss_mb
status = main(sys.argv[1:])
print(peak_rss_mb())
sys.exit(status)
"""


def peak_mb(model, source, out):
    words = [sys.executable, "-c", PEAK, "anonymize", str(source), "-o", str(out), "--model", str(model)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


@pytest.mark.slow
def test_half_an_hour_of_video_takes_no_more_memory_than_a_minute(model, tmp_path):
    peaks = {}
    for minutes in (1, MANY_MINUTES):
        source = write(tmp_path / f"{minutes}.mp4", np.broadcast_to(moving(1, 16, 24), (1500 * minutes, 16, 24, 3)))
        peaks[minutes] = peak_mb(model, source, tmp_path / f"{minutes}-out.mp4")
        assert told(tmp_path / f"{minutes}-out.mp4")["frames"] == 1500 * minutes
    assert peaks[MANY_MINUTES] - peaks[1] < 24  # MB; each frame kept would be 52, each square 34
