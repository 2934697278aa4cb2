"""The streaming core against slow twins, and the verb on real files: what comes out, what never does."""

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from client.anonymize.opening import without_secret
from client.anonymize.stream import StreamAnonymizer
from client.video.decode import probe, stream_video
from client.video.encode import write_video
from fedspact import main
from spact_models.anonymizer import Anonymizer, AnonymizerConfig
from spact_models.errors import UserError
from spact_models.speed import keep_freed_memory

ROOT = Path(__file__).parents[2]
SMALL = {"networks.anonymizer": "motion", "networks.anonymizer_channels": 4, "networks.anonymizer_depth": 1,
         "networks.output_noise": 0.0, "game.beta": 0.0,
         "clip.size_px": 16, "clip.frames": 4, "clip.stride_frames": 2}  # fmt: skip


def core(stride=2, noise=0.0, kind="motion", back=1, **more):
    torch.manual_seed(0)
    sizes = {"base_channels": 4, "depth": 1, "size_px": 16, "motion_frames": back}
    config = AnonymizerConfig(kind, "difference", stride_frames=stride, output_noise=noise, **sizes)
    return StreamAnonymizer(Anonymizer(config), **more)


def noise_frames(count, height=16, width=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def model(tmp_path_factory, write_model):
    return write_model(tmp_path_factory.mktemp("model") / "anonymizer.safetensors")


@pytest.mark.parametrize(("stride", "back"), [(3, 1), (2, 3)])
def test_each_frame_is_the_model_on_it_and_the_frames_a_stride_apart_before(stride, back):
    streams, frames, first = core(stride=stride, back=back), noise_frames(9), stride * back
    state = streams.open()
    done = streams.step([(state, frame) for frame in frames])
    assert [one.black for one in done] == ["start"] * first + [None] * (9 - first)
    assert not any(one.frame_HWC.any() for one in done[:first])
    for t in range(first, 9):
        clip = torch.from_numpy(frames[t - first : t + 1 : stride]).permute(3, 0, 1, 2)[None].float() / 255
        with torch.no_grad():
            slow = streams.anonymizer.transform(clip)[0, :, 0].permute(1, 2, 0) * 255
        assert np.abs(done[t].frame_HWC.astype(float) - slow.numpy()).max() <= 0.51


def test_batches_across_frames_and_streams_change_nothing():
    streams = core()
    first, second = noise_frames(7), noise_frames(7, seed=1)
    one, other = streams.open(), streams.open()
    alone = [streams.step([(state, frame)])[0] for state, part in ((one, first), (other, second)) for frame in part]
    one, other = streams.open(), streams.open()
    mixed = streams.step([pair for a, b in zip(first, second, strict=True) for pair in ((one, a), (other, b))])
    for place, answer in enumerate(mixed):
        twin = alone[place // 2 + 7 * (place % 2)]
        assert answer.black == twin.black
        assert np.abs(answer.frame_HWC.astype(int) - twin.frame_HWC).max() <= 1


def test_after_a_loss_nothing_before_it_is_a_predecessor():
    streams, frames = core(), noise_frames(8)
    state = streams.open()
    given = [*frames[:4], None, *frames[4:]]
    done = streams.step([(state, frame) for frame in given])
    assert [one.black for one in done] == ["start", "start", None, None, "lost", "after loss", "after loss", None, None]
    assert not any(one.frame_HWC.any() for one in done if one.black)


def test_an_answer_that_is_no_picture_is_black():
    streams = core(kind="frame")
    with torch.no_grad():
        streams.anonymizer.unet.exit.bias.fill_(float("nan"))
    (done,) = streams.step([(streams.open(), noise_frames(1)[0])])
    assert done.black == "not finite"
    assert not done.frame_HWC.any()


def test_noise_is_never_the_same_twice_whatever_the_seed():
    streams, frame = core(kind="frame", noise=0.3), noise_frames(1)[0]
    answers = []
    for _ in range(2):
        torch.manual_seed(5)
        answers.append(streams.step([(streams.open(), frame)])[0].frame_HWC)
    assert (answers[0] != answers[1]).mean() > 0.5


def test_frames_come_back_at_their_own_size_and_smoothing_is_the_recursion():
    plain, smooth, frames = core(stride=1), core(stride=1, smooth=0.5), noise_frames(6, 24, 40)
    seen = [one.frame_HWC for one in plain.step([(state, f) for state in [plain.open()] for f in frames])]
    state = smooth.open()
    small = [one.frame_HWC for one in smooth.step([(state, f) for f in frames])]
    assert {frame.shape for frame in seen + small} == {(24, 40, 3)}
    slow = seen[1].astype(float)
    for t in range(2, 6):
        slow = 0.5 * slow + 0.5 * seen[t]
        assert np.abs(small[t] - slow).max() < 3  # rounded at the square, then stretched


def test_a_file_keeps_its_times_and_loses_sound_and_metadata(model, tmp_path):
    source, out = tmp_path / "in.mkv", tmp_path / "out.mp4"
    times = [0, 40, 80, 500, 540, 2000, 2010, 2020]
    with av.open(str(source), "w") as container:
        container.metadata.update({"title": "secret", "location": "+41+029/"})
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for pts, frame in zip(times, noise_frames(8, 48, 64), strict=True):
            picture = av.VideoFrame.from_ndarray(frame)
            picture.pts, picture.time_base = pts, Fraction(1, 1000)
            stream.codec_context.time_base = Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    assert main(["anonymize", str(source), "-o", str(out), "--model", str(model)]) == 0
    with av.open(str(out)) as container:
        assert {one.type for one in container.streams} == {"video"}
        assert "title" not in container.metadata
        assert "location" not in container.metadata
        seen = [round(1000 * float(frame.time)) for frame in container.decode(video=0)]
    assert seen == times
    told = json.loads((tmp_path / "out.mp4.json").read_text())
    assert told["frames"] == 8
    assert told["black_frames"]["start"] == 2
    assert told["complete"]
    assert all(not frame.max() > 20 for frame in list(stream_video(out))[:2])


def test_a_folder_is_mirrored_resumed_and_names_what_it_refused(model, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    write_video(folder / "a" / "x.mp4", noise_frames(5, 32, 48), 25)
    write_video(folder / "y.mp4", noise_frames(5, 32, 48), 25)
    (folder / "z.mp4").write_bytes(b"no video")
    words = ["anonymize", str(folder), "-o", str(out), "--model", str(model)]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert f"note: {model} is not signed: no federation vouches for it (docs/release.md)\n" in said
    refused = "not a video, or cut off or damaged in its header"
    assert f"2 anonymized (10 frames, 4 of them black); 1 refused:\n  {folder / 'z.mp4'}: {refused}\n" in said
    assert f"all are listed in {out / 'anonymize.json'}" in said
    assert tree(out) == ["a/x.mp4", "a/x.mp4.json", "anonymize.json", "y.mp4", "y.mp4.json"]
    assert [one["name"] for one in json.loads((out / "anonymize.json").read_text())["refused"]] == ["z.mp4"]
    before = (out / "y.mp4").stat().st_mtime_ns
    assert main(words) == 1
    assert json.loads((out / "anonymize.json").read_text())["skipped"] == ["x.mp4", "y.mp4"]
    assert (out / "y.mp4").stat().st_mtime_ns == before
    said = capsys.readouterr().err
    assert "nothing was anonymized; 2 finished before and left as they are (--force replaces them); 1 refused" in said
    assert main([*words, "--height", "16"]) == 1  # other settings: not the same work, and nobody said --force
    assert (out / "y.mp4").stat().st_mtime_ns == before
    assert main([*words, "--height", "16", "--force"]) == 1
    assert probe(out / "y.mp4").height == 16


def test_the_first_five_refusals_are_named_and_a_summary_that_cannot_be_written_is_said(model, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(7):
        (folder / f"{number}.mp4").write_bytes(b"no video")
    words = ["anonymize", str(folder), "-o", str(out), "--model", str(model)]
    (out / "anonymize.json").mkdir(parents=True)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "nothing was anonymized; 7 refused:" in said
    assert [f"{number}.mp4: not a video" in said for number in range(7)] == [True] * 5 + [False] * 2
    assert "  … 2 more\n" in said
    assert "all are listed in" not in said
    assert f"{out / 'anonymize.json'}: cannot be written (Is a directory); choose another place" in said


def test_damage_is_black_and_the_status_says_so(model, tmp_path):
    source, out = damaged(tmp_path / "in.avi"), tmp_path / "out.mp4"
    assert main(["anonymize", str(source), "-o", str(out), "--model", str(model)]) == 3
    told = json.loads((tmp_path / "out.mp4.json").read_text())
    assert told["black_frames"]["lost"] == 1
    assert told["black_frames"]["after loss"] == 2
    assert told["frames"] == 20
    assert not told["complete"]


def test_what_was_lost_is_told_of_a_video_that_is_ended_early_too(model, tmp_path):
    source, out = damaged(tmp_path / "in.avi"), tmp_path / "out.mp4"
    assert main(["anonymize", str(source), "-o", str(out), "--model", str(model), "--seconds", "0.7"]) == 3
    told = json.loads((tmp_path / "out.mp4.json").read_text())
    assert told["frames"] == 18
    assert told["losses"]["damaged"] == 1
    assert told["losses"]["packets"] >= 18


def damaged(source):
    """20 frames at 25 a second, one picture in the middle of them lost."""
    with av.open(str(source), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        for frame in noise_frames(20, 48, 64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode(None))
    content = bytearray(source.read_bytes())
    place = len(content) // 2
    start = content.index(b"\xff\xd8", place)  # one picture in the middle: nothing of its header is left
    content[start : start + 700] = bytes(700)
    source.write_bytes(content)
    return source


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://bob:pw@cam/1", "rtsp://cam/1"),
        ("http://bob:pw@cam:80/a/b.ts?token=pw#pw", "http://cam:80/a/b.ts"),
        ("srt://cam:9000?passphrase=p/w@pw", "srt://cam:9000"),  # no path before it
        ("rtsp://bob:p/w@cam/1", "rtsp://cam/1"),  # not well formed, but typed by people
        ("RTSP://bob@pw:pw@cam", "RTSP://cam"),
        ("bob:pw@cam.mp4", "bob:pw@cam.mp4"),  # a file
    ],
)
def test_an_address_is_shown_without_its_secrets(address, shown):
    assert without_secret(address) == shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no.mp4", "-o", "o.mp4"], "no such file"),
        (["empty.mp4", "-o", "o.mp4"], "empty"),
        (["a.mp4", "-o", "a.mp4"], "the input itself"),
        (["a.mp4", "-o", "there.mp4"], "--force"),
        (["a.mp4", "-o", "o.avi"], "name it"),
        (["a.mp4", "-o", "o.webm", "--codec", "h264"], "vp9"),
        (["a.mp4", "-o", "o.mp4", "--working-size", "32"], "--allow-unjudged-size"),
        (["/dev/video97", "-o", "o.mp4"], "no such camera"),
        (["http://user:pass@127.0.0.1:9/x", "-o", "o.mp4"], "cannot be reached"),
        ([".", "-o", "inside"], "inside the input"),
        (["http://a:pass@cam/x", "http://b:pass@cam/x", "-o", "out"], "would be the output of http://cam/x, http"),
    ],
)
def test_mistakes_are_said_and_nothing_is_left(model, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", noise_frames(3, 32, 32), 25)
    (tmp_path / "there.mp4").write_bytes(b"old")
    (tmp_path / "empty.mp4").touch()
    before = tree(tmp_path)
    assert main(["anonymize", *words, "--model", str(model)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "pass@" not in told
    assert tree(tmp_path) == before
    assert (tmp_path / "there.mp4").read_bytes() == b"old"


def _process(words, before="", **more):
    code = f"import resource, sys; from fedspact import main; {before}sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, "anonymize", *words], cwd=ROOT, env=environment, **more)


def test_a_full_disk_and_a_signal_leave_nothing(model, tmp_path):
    source, out = tmp_path / "in.mp4", tmp_path / "out"
    write_video(source, noise_frames(300, 64, 64), 25)
    out.mkdir()
    words = [str(source), "-o", str(out / "o.mp4"), "--model", str(model), "--height", "480", "--crf", "0"]
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
    full = _process(words, limit, stderr=subprocess.PIPE)
    said = full.communicate(timeout=120)[1].decode()
    assert full.returncode == 2, said
    assert "cannot be written (File too large); free some space or choose another place" in said
    assert tree(out) == []
    ended = _process(words, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not tree(out) and time.monotonic() < deadline:
        time.sleep(0.02)
    ended.send_signal(signal.SIGTERM)
    said = ended.communicate(timeout=120)[1].decode()
    assert ended.returncode == 130
    assert "go on with: the same command again; videos that are finished stay" in said
    assert tree(out) == []


def test_a_read_only_disk_is_not_told_to_free_space(model, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    write_video(tmp_path / "in.mp4", noise_frames(3, 32, 48), 25)
    try:
        words = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)]
        done = subprocess.run(words, capture_output=True, check=False)
    except FileNotFoundError:
        done = None
    if done is None or done.returncode:
        pytest.skip("needs the right to mount")
    try:
        assert main(["anonymize", str(tmp_path / "in.mp4"), "-o", str(disk / "o.mp4"), "--model", str(model)]) == 2
        said = f"fedspact: {disk / 'o.mp4'}: cannot be written (Read-only file system); choose another place\n"
        assert capsys.readouterr().err.endswith(said)
        with pytest.raises(UserError, match=r"x\.mp4: cannot be written \(Read-only file system\); choose another"):
            write_video(disk / "x.mp4", noise_frames(3, 32, 48), 25)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_pipes(model, tmp_path):
    source = tmp_path / "in.mp4"
    write_video(source, noise_frames(6, 32, 48), 25)
    piped = _process(["-", "-o", "-", "--model", str(model)], stdin=source.open("rb"), stdout=subprocess.PIPE)
    content = piped.communicate(timeout=120)[0]
    assert piped.returncode == 0
    (tmp_path / "out.mkv").write_bytes(content)
    assert len(list(stream_video(tmp_path / "out.mkv"))) == 6


@pytest.mark.skipif(not keep_freed_memory(), reason="this C library cannot be told to keep memory")
def test_the_command_keeps_freed_memory(model, tmp_path):
    """Page faults of ten tensors of 64 MiB, one after the other, before and after the command in one process."""
    write_video(tmp_path / "in.mp4", noise_frames(3, 32, 32), 25)
    count = (
        "import resource, sys, torch; from fedspact import main\n"
        "def faults():\n"
        "    one = torch.ones(2**24); del one; before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(10): one = torch.ones(2**24); del one\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "plain = faults(); assert main(sys.argv[1:]) == 0; print(plain, faults())"
    )
    words = ["anonymize", str(tmp_path / "in.mp4"), "-o", str(tmp_path / "out.mp4"), "--model", str(model)]
    done = subprocess.run([sys.executable, "-c", count, *words], cwd=ROOT, check=True, capture_output=True, text=True)
    plain, kept = map(int, done.stdout.split())
    assert kept < plain / 5
