"""Real files of many kinds through ``fedspact anonymize``: sound, odd sizes, depths, codecs, a cut-off file."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest

from client.video.decode import probe
from client.video.encode import write_video
from fedspact import main

SMALL = {"networks.anonymizer": "motion", "networks.anonymizer_channels": 4, "networks.anonymizer_depth": 1,
         "clip.size_px": 16, "clip.frames": 4, "clip.stride_frames": 2}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory, write_model):
    return write_model(tmp_path_factory.mktemp("model") / "anonymizer.safetensors", quiet=False)


def noise(count, height, width):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write(path, frames, codec="libx264", pix_fmt="yuv420p", sound=False):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        audio = container.add_stream("aac", rate=16000) if sound else None
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode(None))
        if audio is not None:
            tone = np.sin(np.arange(16000) / 10).astype(np.float32)[None]
            for place in range(0, 15360, 1024):
                block = av.AudioFrame.from_ndarray(tone[:, place : place + 1024], format="fltp", layout="mono")
                block.sample_rate, block.pts, block.time_base = 16000, place, Fraction(1, 16000)
                container.mux(audio.encode(block))
            container.mux(audio.encode(None))


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(one) for one in container.demux(audio=0) if one.size]


def run(model, source, out, *more):
    return main(["anonymize", str(source), "-o", str(out), "--model", str(model), *more])


def test_sound_is_copied_only_when_asked(model, tmp_path):
    write(tmp_path / "in.mp4", noise(25, 32, 48), sound=True)
    assert run(model, tmp_path / "in.mp4", tmp_path / "silent.mp4") == 0
    with av.open(str(tmp_path / "silent.mp4")) as container:
        assert not container.streams.audio
    assert run(model, tmp_path / "in.mp4", tmp_path / "loud.mp4", "--keep-audio") == 0
    assert packets(tmp_path / "loud.mp4") == packets(tmp_path / "in.mp4")


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("in.mkv", "ffv1", "yuv420p10le"), ("in.mkv", "ffv1", "bgra"), ("in.mp4", "libx264", "yuv444p")],
)
def test_odd_sides_depth_and_alpha_are_read(model, tmp_path, name, codec, pix_fmt):
    write(tmp_path / name, noise(5, 33, 47), codec, pix_fmt)
    assert run(model, tmp_path / name, tmp_path / "out.mp4") == 0
    out = probe(tmp_path / "out.mp4")
    assert (out.height, out.width) == (34, 48)
    assert json.loads((tmp_path / "out.mp4.json").read_text())["frames"] == 5


@pytest.mark.parametrize(
    ("out", "words", "codec"),
    [
        ("o.mp4", ["--codec", "hevc"], "hevc"),
        ("o.webm", [], "vp9"),
        ("o.mkv", ["--codec", "ffv1"], "ffv1"),
        ("o.mp4", ["--precision", "bf16"], "h264"),
    ],
)
def test_codecs_and_bf16(model, tmp_path, out, words, codec):
    write_video(tmp_path / "in.mp4", noise(6, 64, 64), 25)
    assert run(model, tmp_path / "in.mp4", tmp_path / out, *words) == 0
    with av.open(str(tmp_path / out)) as container:
        assert container.streams.video[0].codec_context.name.removeprefix("lib") in (codec, "vpx-vp9")
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 6
    assert frames[0].max() < 20  # black, with nothing before it
    assert frames[-1].std() > 0


def test_a_cut_off_file_says_so(model, tmp_path):
    write_video(tmp_path / "in.mp4", noise(50, 64, 64), 25)
    content = (tmp_path / "in.mp4").read_bytes()
    (tmp_path / "in.mp4").write_bytes(content[: len(content) * 6 // 10])
    assert run(model, tmp_path / "in.mp4", tmp_path / "out.mp4") == 3
    told = json.loads((tmp_path / "out.mp4.json").read_text())
    assert told["losses"]["cut_off"]
    assert 0 < told["frames"] < 50
