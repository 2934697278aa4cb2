"""``anonymise``, ``serve``, ``start-up``, ``demo``: what somebody who uses the program waits for."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from client.anonymize.job import HowTo, anonymize_video
from client.anonymize.sink import Encoding
from client.anonymize.source import open_source
from client.anonymize.stream import StreamAnonymizer
from simulations.benchmarks.measured import Row, Spread, in_turns, seconds_of
from simulations.benchmarks.serve_load import FPS, HEIGHT, WIDTH, measure
from simulations.benchmarks.videos import write_videos
from spact_models.anonymizer import Anonymizer
from spact_models.checkpoint import ANONYMIZER_FILE, save_checkpoint
from spact_models.exchange import ANONYMIZER, snapshot
from spact_models.networks import anonymizer_config, build_networks, checkpoint_header
from spact_models.run_config import load_settings
from spact_models.seeds import pick_device
from spact_models.settings import Settings
from spact_models.speed import keep_freed_memory

STREAMS = (1, 2, 4, 8, 16)
DEMO_SECONDS, HELP_SECONDS = 300.0, 0.5


def _settings(quick: bool) -> Settings:
    return load_settings({"preset": "tiny" if quick else "small"})


def measure_anonymise(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:
    """A file through f_A as ``fedspact anonymize`` takes it: seconds of video a second."""
    keep_freed_memory()
    settings = _settings(quick)
    torch.manual_seed(0)
    device = pick_device("auto")
    streams = StreamAnonymizer(Anonymizer(anonymizer_config(settings)), device)
    frames, rate = 50 if quick else 150, 25.0
    of_file = f"f_A of the {settings.preset} preset, decode to encode"
    how = HowTo(streams, Encoding(), {}, {})
    took = _anonymised((240, 320), frames, how, repeats, on_step)
    speeds = Spread.of([frames / rate / seconds for seconds in took])
    what = f"a 240p file at {rate:.0f} frames a second, {of_file}"
    yield Row("anonymise", what, "× real time", speeds, None, None, 1.0, "at least")
    if device.type == "cuda":
        speeds = Spread.of([frames / seconds for seconds in _anonymised((720, 1280), frames, how, repeats, on_step)])
        yield Row("anonymise-720p", f"a 720p file, {of_file}", "frames/s", speeds, None, None, 500.0, "at least")


def _anonymised(
    size: tuple[int, int], frames: int, how: HowTo, repeats: int, on_step: Callable[[], object]
) -> list[float]:
    """Seconds of each repeat; one before them is not timed."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_videos(Path(folder), 1, *size, frames, 25.0)[0]
        took = []
        for number in range(repeats + 1):
            out = Path(folder) / f"out-{number}.mp4"
            took.append(seconds_of(partial(_anonymise, path, out, how)))
            on_step()
    return took[1:]


def _anonymise(path: Path, out: Path, how: HowTo) -> None:
    anonymize_video(open_source(str(path), how.streams.size_px), out, how)


def measure_serve(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:  # noqa: ARG001
    """Cameras that one service holds."""
    settings = _settings(quick)
    classes = ["a", "b"]
    networks = build_networks(settings, classes)
    held, told = 0, ""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / ANONYMIZER_FILE
        weights = snapshot(networks.anonymizer, networks.action)
        alone = {name: value for name, value in weights.items() if name.startswith(ANONYMIZER)}
        save_checkpoint(model, alone, checkpoint_header(settings, classes, round=1))
        for streams in STREAMS:
            found = measure(model, streams, seconds=4.0 if quick else 10.0)
            on_step()
            if not found["held"]:
                told += f"; {streams}: p99 {found['p99_ms']:.0f} ms"
                break
            held, told = streams, f"{streams}: p50 {found['p50_ms']:.0f} ms, p99 {found['p99_ms']:.0f} ms"
    what = f"cameras of {WIDTH}×{HEIGHT} at {FPS:.0f} frames a second held, f_A of the {settings.preset} preset"
    note = f"{told}; senders on the same cores; no target is set but one camera"
    yield Row("serve", what, "cameras", Spread.of([float(held)]), None, None, 1.0, "at least", note)


def measure_start_up(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:  # noqa: ARG001
    """``fedspact --help``, a process from start to end; the target is about its seconds, not about Python's own."""

    def started(*words: str) -> None:
        subprocess.run([sys.executable, *words], check=True, capture_output=True)

    whole, bare = partial(started, "-m", "fedspact", "--help"), partial(started, "-c", "pass")
    ours, python, _ = in_turns(whole, bare, max(3, repeats), on_step)
    yield Row("start-up", "fedspact --help, and Python alone", "s", ours, python, None, HELP_SECONDS, "at most")


def measure_demo(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:  # noqa: ARG001
    """``fedspact demo``, cold: a process, a folder and a cache of its own. Once: it takes minutes."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "fedspact", "demo", "--out", str(Path(folder) / "demo")]
        took = seconds_of(lambda: subprocess.run(words, check=True, capture_output=True))
    on_step()
    yield Row("demo", "fedspact demo, cold", "s", Spread.of([took]), None, None, DEMO_SECONDS, "at most")
