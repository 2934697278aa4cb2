"""The service as real processes, with several real streams at once, against the same network called by hand."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from safetensors import safe_open
from safetensors.torch import save_file

from client.anonymize.model import open_model
from client.anonymize.stream import StreamAnonymizer
from client.edge.anonymizer_pb2 import Frame
from client.edge.anonymizer_pb2_grpc import AnonymizerStub
from client.edge.batcher import FAILED, Batcher
from client.edge.caller import Caller
from client.video.decode import stream_video
from client.video.encode import write_video
from fedspact import main
from spact_models.errors import RunStopped, UserError

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-sufficient-length"


@pytest.fixture
def model(tmp_path, write_model):
    return write_model(tmp_path / "model.safetensors")


@pytest.fixture(scope="module")
def shared(tmp_path_factory, write_model):
    """``(model, port)`` of one process for all tests that ask nothing special of it."""
    model = write_model(tmp_path_factory.mktemp("shared") / "model.safetensors")
    with serving(model) as (port, _):
        yield model, port


@contextlib.contextmanager
def serving(model, *flags):
    """A real server process: ``(port, process)``."""
    words = [sys.executable, str(ROOT / "fedspact.py"), "serve", "--model", model, "--port", 0, *flags]
    process = subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"serving .* at .*:(\d+),", line):
                break
        else:
            raise AssertionError("".join(said))
        process.said = said
        yield int(found[1]), process
    finally:
        process.kill()
        process.communicate()


def film(seed, frames, height, width):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(frames)]


def by_hand(model, frames):
    """The slow twin: one stream alone, frame by frame."""
    alone = StreamAnonymizer(open_model(model).anonymizer)
    state = alone.open()
    return [alone.step([(state, frame)])[0] for frame in frames]


def test_every_stream_is_answered_in_order_with_its_own_frames_anonymised(shared):
    model, port = shared
    films = [
        film(1, 9, 20, 30),
        film(2, 14, 16, 16),
        film(3, 5, 33, 21),
        [*film(4, 4, 18, 18), None, *film(5, 6, 18, 18)],
    ]
    with Caller(f"127.0.0.1:{port}") as caller:
        with ThreadPoolExecutor(len(films)) as pool:
            came = list(pool.map(lambda frames: list(caller.anonymize(frames)), films))
        told = caller.describe()
        assert (told.working_px, told.history_frames, told.stride_frames, told.streams) == (16, 1, 2, 0)
    for frames, answers in zip(films, came, strict=True):
        assert [answer.number for answer in answers] == list(range(len(frames)))
        for frame, answer, twin in zip(frames, answers, by_hand(model, frames), strict=True):
            assert answer.black == (twin.black or "")
            # a batch of several frames may round otherwise than one of one
            assert np.abs(answer.frame_HWC.astype(int) - twin.frame_HWC.astype(int)).max() <= 1
            assert frame is None or not np.array_equal(frame, answer.frame_HWC)
            assert not answer.black or not answer.frame_HWC.any()
            assert answer.model_sha256 == told.model_sha256
    reasons = [answer.black for answer in came[3]]
    assert reasons == ["start", "start", "", "", "lost", "after loss", "after loss", "", "", "", ""]


def test_one_stream_too_many_is_turned_away_until_another_ends(model):
    hold = threading.Event()

    def slow():
        yield from film(1, 1, 16, 16)
        hold.wait()

    with serving(model, "--max-streams", 1) as (port, _), Caller(f"127.0.0.1:{port}") as caller:
        first = caller.anonymize(slow())
        assert next(first).black == "start"
        with pytest.raises(RunStopped, match="RESOURCE_EXHAUSTED: 1 streams are being served, --max-streams = 1"):
            next(caller.anonymize(film(2, 3, 16, 16)))
        hold.set()
        assert list(first) == []
        assert len(list(caller.anonymize(film(2, 3, 16, 16)))) == 3


def test_who_goes_in_the_middle_leaves_nothing_and_disturbs_nobody(shared):
    port = shared[1]
    with Caller(f"127.0.0.1:{port}") as caller:
        frames = film(1, 30, 16, 16)
        answers = caller.anonymize(frames)
        next(answers)
        with Caller(f"127.0.0.1:{port}") as other:
            gone = other.anonymize(film(2, 100, 64, 64))
            next(gone)
            gone.close()
        assert len(list(answers)) == 29
        for _ in range(2000):  # the server learns of it in its own time
            if caller.describe().streams == 0:
                break
        assert caller.describe().streams == 0


def test_a_deadline_ends_a_stream(shared):
    port = shared[1]
    never = threading.Event()

    def silent():
        yield from film(1, 1, 16, 16)
        never.wait()

    with Caller(f"127.0.0.1:{port}") as caller:
        with pytest.raises(RunStopped, match="DEADLINE_EXCEEDED"):
            list(caller.anonymize(silent(), timeout_seconds=1.0))
        never.set()


@pytest.mark.parametrize(
    ("frame", "wrong"),
    [
        (Frame(number=7, height=4, width=4, rgb=b"123"), "frame 7 has 3 bytes, must be 48"),
        (Frame(number=7, height=0, width=4), "frame 7 is 0×4, must be at least 1×1"),
        (Frame(number=7, height=2000, width=2000, rgb=b"x"), "must have at most 2073600 pixels"),
    ],
)
def test_a_bad_frame_ends_its_stream_after_the_good_ones(shared, frame, wrong):
    good = Frame(number=1, height=16, width=16, rgb=bytes(768))
    with grpc.insecure_channel(f"127.0.0.1:{shared[1]}") as channel:
        answers = AnonymizerStub(channel).Anonymize(iter([good, frame, good]))
        assert next(answers).number == 1
        with pytest.raises(grpc.RpcError) as error:
            next(answers)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert wrong in error.value.details()


def test_the_model_is_swapped_between_two_frames(model, write_model):
    frames = film(1, 12, 16, 16)
    go_on = threading.Event()

    def sent():
        yield from frames[:6]
        go_on.wait()
        yield from frames[6:]

    with serving(model) as (port, process), Caller(f"127.0.0.1:{port}") as caller:
        before = caller.describe().model_sha256
        answers = caller.anonymize(sent())
        came = [next(answers) for _ in range(6)]
        model.write_bytes(b"no model")
        process.send_signal(signal.SIGHUP)
        assert "the model was not taken" in process.stdout.readline()
        write_model(model, seed=1)
        process.send_signal(signal.SIGHUP)
        assert any("from the next frames on" in line for line in process.stdout)  # read until it is said
        go_on.set()
        came += list(answers)
        after = caller.describe().model_sha256
    assert before != after
    assert [answer.model_sha256 for answer in came] == [before] * 6 + [after] * 6
    assert [answer.black for answer in came] == ["start", "start", "", "", "", ""] * 2
    for answer, twin in zip(came[6:], by_hand(model, frames[6:]), strict=True):
        assert np.abs(answer.frame_HWC.astype(int) - twin.frame_HWC.astype(int)).max() <= 1


def test_stopping_answers_what_was_taken_and_says_so(model):
    hold = threading.Event()

    def sent():
        yield from film(1, 40, 256, 256)
        hold.wait()

    with serving(model) as (port, process), Caller(f"127.0.0.1:{port}") as caller:
        answers = caller.anonymize(sent())
        came = [next(answers)]
        process.terminate()
        with pytest.raises(RunStopped, match="UNAVAILABLE: the service is stopping"):
            came.extend(answers)
        hold.set()
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert [answer.number for answer in came] == list(range(len(came)))
        assert f"stopped: {len(came)} frames taken, {len(came)} answered" in said


def test_health_reflection_and_figures(model):
    with serving(model, "--metrics-port", 0, "--token-file", token_file(model)) as (port, process):
        figures = re.search(r"figures: (http://\S+)", "".join(process.said))[1]
        with Caller(f"127.0.0.1:{port}", token=TOKEN) as caller:
            list(caller.anonymize(film(1, 5, 16, 16)))
        text = urllib.request.urlopen(figures).read().decode()
        assert 'fedspact_edge_frames_total{outcome="anonymized"} 3.0' in text
        assert 'fedspact_edge_frames_total{outcome="start"} 2.0' in text
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for name in ("", "fedspact.edge.Anonymizer"):  # a probe needs no token
                asked = health_pb2.HealthCheckRequest(service=name)
                answer = health_pb2_grpc.HealthStub(channel).Check(asked)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            reflected = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            shown = [("authorization", f"Bearer {TOKEN}")]
            names = next(reflected.ServerReflectionInfo(iter([asked]), metadata=shown)).list_services_response.service
            assert "fedspact.edge.Anonymizer" in {one.name for one in names}


def token_file(beside):
    path = beside.with_name("token")
    path.write_text(TOKEN + "\n")
    return path


def certificate(folder, name):
    key, cert = folder / f"{name}.key", folder / f"{name}.crt"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    words += ["-keyout", key, "-out", cert, "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([str(word) for word in words], check=True, capture_output=True)
    return key, cert


def test_only_who_has_the_token_and_the_right_ca_comes_in(model, tmp_path):
    key, cert = certificate(tmp_path, "mine")
    _, other = certificate(tmp_path, "other")
    frames = film(1, 4, 16, 16)
    with serving(model, "--tls-cert", cert, "--tls-key", key, "--token-file", token_file(model)) as (port, _):
        address = f"localhost:{port}"
        with Caller(address, cert, TOKEN) as caller:
            assert len(list(caller.anonymize(frames))) == 4
        with Caller(address, cert, "a-token-that-is-not-the-one") as caller:
            with pytest.raises(UserError, match="UNAUTHENTICATED: the token is missing or wrong"):
                caller.describe()
            with pytest.raises(RunStopped, match="UNAUTHENTICATED"):
                list(caller.anonymize(frames))
        for wrong in (other, None):
            with Caller(address, wrong, TOKEN) as caller, pytest.raises(UserError, match="UNAVAILABLE"):
                caller.describe(timeout_seconds=5)


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: raw frames would cross the network"),
        (["--tls-cert", "x.pem"], "--tls-cert and --tls-key go together"),
        (["--client-ca", "x.pem"], "--client-ca: needs --tls-cert"),
        (["--tls-cert", "no.pem", "--tls-key", "no.pem"], "--tls-cert no.pem: cannot be read"),
        (["--token-file", "TOKEN"], "the token has 5 characters, must have at least 16"),
        (["--max-streams", "0"], "--max-streams 0: must be at least 1"),
        (["--port", "70000"], "--port 70000: must be from 0 to 65535"),
        (["--device", "cuda:9"], "cuda:9"),
    ],
)
def test_mistakes_of_who_starts_it(model, tmp_path, flags, wrong, capsys):
    short = tmp_path / "short"
    short.write_text("short")
    flags = [str(short) if flag == "TOKEN" else flag for flag in flags]
    assert main(["serve", "--model", str(model), *flags]) == 2
    assert wrong in capsys.readouterr().err


def test_a_port_in_use_is_told(shared, capsys):
    model, port = shared
    assert main(["serve", "--model", str(model), "--port", str(port)]) == 2
    assert f"--port {port}: port {port} is in use" in capsys.readouterr().err


def test_a_fault_in_the_network_is_black_and_never_raw(model):
    class Broken(StreamAnonymizer):
        def step(self, frames):
            if len(frames[0][1]) == 17:
                raise RuntimeError("out of memory")
            return super().step(frames)

    async def play():
        batcher = Batcher(Broken(open_model(model).anonymizer), "abc")
        work = asyncio.create_task(batcher.work())
        line = batcher.join()
        sizes = [16, 16, 16, 17, 16, 16, 16]
        answers = [await batcher.put(line, film(1, 1, size, size)[0]) for size in sizes]
        work.cancel()
        return answers

    answers = asyncio.run(play())
    assert [answer.black for answer in answers] == ["start", "start", "", FAILED, "after loss", "after loss", ""]
    assert answers[3].frame_HWC.shape == (17, 17, 3)
    assert not answers[3].frame_HWC.any()


def test_a_fast_stream_does_not_keep_a_slow_one_waiting(model):
    """200 frames of one stream stand in line before the one frame of another: that one is in the very next pass."""
    passes = []

    class Watched(StreamAnonymizer):
        def step(self, frames):
            passes.append([id(state) for state, _ in frames])
            return super().step(frames)

    async def play():
        batcher = Batcher(Watched(open_model(model).anonymizer), "abc")
        greedy, modest = batcher.join(), batcher.join()
        frame = np.zeros((16, 16, 3), np.uint8)
        many = [batcher.put(greedy, frame) for _ in range(200)]
        one = batcher.put(modest, frame)
        work = asyncio.create_task(batcher.work())
        await one
        waiting = sum(not answer.done() for answer in many)
        await asyncio.gather(*many)
        work.cancel()
        return id(modest.state), waiting

    modest, waiting = asyncio.run(play())
    assert modest in passes[0]
    assert waiting >= 200 - 32
    assert max(map(len, passes)) <= 32


def test_a_sender_that_reads_no_answers_is_held_back(shared):
    """1,000 frames of 768 kB would be 768 MB: what is taken from the sender ends far below, with nobody reading."""
    port = shared[1]
    sent = 0

    def endless():
        nonlocal sent
        frame = np.zeros((500, 512, 3), np.uint8)
        for _ in range(1000):
            sent += 1
            yield frame

    with Caller(f"127.0.0.1:{port}") as caller:
        answers = caller.anonymize(endless())
        next(answers)
        before, still = -1, 0
        while still < 10:
            still = still + 1 if sent == before else 0
            before = sent
            threading.Event().wait(0.1)
        assert sent < 300
        answers.close()


def test_a_file_through_the_service(shared, tmp_path, capsys):
    source, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_video(source, iter(film(1, 12, 48, 64)), fps=12.5)
    words = ["camera", str(source), "--server", f"127.0.0.1:{shared[1]}", "-o", str(out)]
    assert main(words) == 0
    assert "12 frames, 2 of them black" in capsys.readouterr().out
    assert main(words) == 2
    assert "exists; choose another name, or --force" in capsys.readouterr().err
    assert main([*words, "--force", "--seconds", "0.5"]) == 0
    frames = list(stream_video(out))
    assert len(frames) == 7
    assert frames[0].shape == (48, 64, 3)
    assert max(int(frame.max()) for frame in frames[:2]) < 40  # black, through a lossy codec
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_source_that_cannot_be_read_is_the_users_to_mend(shared, tmp_path, capsys):
    """Found when it is opened, or by gRPC's thread when the first frame is asked for."""
    with av.open(str(tmp_path / "sound.mkv"), "w") as file:
        stream = file.add_stream("mp2", rate=48000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), "s16", "mono")
        silence.rate = 48000
        file.mux(stream.encode(silence))
        file.mux(stream.encode(None))
    for name, wrong in (("none.mp4", "no such file"), ("sound.mkv", "holds no video")):
        words = ["camera", str(tmp_path / name), "--server", f"127.0.0.1:{shared[1]}", "-o", str(tmp_path / "o.mp4")]
        assert main(words) == 2
        assert f"fedspact: {tmp_path / name}: {wrong}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["sound.mkv"]


def test_black_by_a_fault_and_a_cut_off_file_are_not_called_success(shared, model, tmp_path, capsys):
    source, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_video(source, iter(film(1, 40, 48, 64)), fps=25)
    with safe_open(model, "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file({name: torch.full_like(value, float("nan")) for name, value in tensors.items()}, model, header)
    with serving(model) as (port, _):
        assert main(["camera", str(source), "--server", f"127.0.0.1:{port}", "-o", str(out)]) == 1
    assert "40 frames, 40 of them black, 38 of these spoiled (not finite: 38)" in capsys.readouterr().out
    with av.open(str(source)) as file:
        places = [packet.pos for packet in file.demux(video=0) if packet.size]
    os.truncate(source, places[20])  # between two pictures: none is damaged
    assert main(["camera", str(source), "--server", f"127.0.0.1:{shared[1]}", "-o", str(out), "--force"]) == 1
    said = capsys.readouterr().out
    assert "the source was cut off (" in said
    assert "lost" not in said


def soon(true):
    deadline = time.monotonic() + 60
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)


STAYS = """
import sys, time
from fedspact import main
status = main(sys.argv[1:])
time.sleep(1)  # libav looks for an interruption ten times a second: whoever took its memory away is found out
sys.exit(status)
"""


def test_ctrl_c_while_a_camera_is_silent_keeps_the_file_and_ends_in_order(shared, tmp_path):
    """gRPC's thread is inside the source when the command ends; to close it under the thread's hands is a crash."""
    with av.open(str(tmp_path / "in.ts"), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for frame in film(1, 60, 32, 32):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        file.mux(stream.encode(None))
    out = tmp_path / "out" / "o.mkv"
    with socket.create_server(("127.0.0.1", 0)) as camera:
        address = f"http://127.0.0.1:{camera.getsockname()[1]}/in.ts"
        words = ["camera", address, "--server", f"127.0.0.1:{shared[1]}", "-o", str(out)]
        process = subprocess.Popen(
            [sys.executable, "-c", STAYS, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "MALLOC_PERTURB_": "165"},  # glibc overwrites what is freed
        )  # fmt: skip
        there, _ = camera.accept()
        with there:
            there.recv(65536)
            there.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\n\r\n" + (tmp_path / "in.ts").read_bytes())
            soon(lambda: list(out.parent.glob(".*")))
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            soon(out.exists)
            time.sleep(1)
    said, wrong = process.communicate(timeout=60)  # the camera is gone
    assert process.returncode == 0, wrong
    assert "of them black" in said
    assert len(list(stream_video(out))) > 1
    assert [path.name for path in out.parent.iterdir()] == ["o.mkv"]


def test_a_service_that_is_not_there(model, tmp_path, capsys):
    words = ["camera", str(model), "--server", "127.0.0.1:9", "-o", str(tmp_path / "o.mp4")]
    assert main(words) == 2
    assert "--server 127.0.0.1:9: nothing listens at 127.0.0.1:9" in capsys.readouterr().err
