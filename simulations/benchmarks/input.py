"""``decode``, ``loader``, ``feed``: how fast frames come, in the first epoch and in later ones."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch

from client.prefetch import worth_a_thread
from client.training import fed
from client.video.cache import FrameCache
from client.video.loader import ClipLoader
from client.video.rows import Row as VideoRow
from simulations.benchmarks.measured import Row, in_turns
from simulations.benchmarks.step import Scene
from simulations.benchmarks.videos import write_videos
from spact_models.minimax import anonymizer_move, critics_move
from spact_models.networks import anonymizer_config
from spact_models.run_config import load_settings
from spact_models.settings import Settings
from spact_models.views import Batch

BATCHES = 8


def measure_decode(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:
    """The first epoch: everything that the cache does for a video, against decoding it and nothing else."""
    count, height, width = (4, 240, 320) if quick else (8, 720, 1280)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_videos(Path(folder), count, height, width)

        def ours() -> None:
            with tempfile.TemporaryDirectory() as fresh:
                assert not FrameCache(Path(fresh), 112).prepare(paths, workers=1, progress=False)

        def limit() -> None:
            for path in paths:
                with av.open(str(path)) as container:
                    container.streams.video[0].thread_count = 1
                    for _ in container.decode(video=0):
                        pass

        own, other, ratio = in_turns(ours, limit, repeats, on_step)
        what = f"{count} videos of {height}p into the cache at 112 px, against decoding alone; 1 thread"
        yield Row("decode", what, "s", own, other, ratio, 0.9, "at least")


def measure_loader(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:
    """Later epochs: batches from the cache, against the reference, which decodes in every epoch."""
    size = {"clip.size_px": 32 if quick else 112}
    settings = load_settings({"preset": "tiny", "batch.clips": 8, "batch.views": 8, **size})
    with tempfile.TemporaryDirectory() as folder:
        rows = _rows(Path(folder), 8)
        loader = _loader(rows, settings, Path(folder) / "cache")
        batches = loader.training(0)

        def ours() -> None:
            for _ in range(BATCHES):
                next(batches)

        def twin() -> None:
            for _ in range(BATCHES):
                for row in rows:
                    with av.open(str(row.path)) as container:
                        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
                    whole = torch.from_numpy(np.stack(frames[: settings.clip.frames + 1])).permute(0, 3, 1, 2).float()
                    torch.nn.functional.interpolate(whole, size=(settings.clip.size_px,) * 2, mode="bilinear")

        own, other, ratio = in_turns(ours, twin, repeats, on_step)
        what = f"{BATCHES} batches of 8 clips and 8 pairs from the cache, against decoding 240p anew"
        yield Row("loader", what, "s", own, other, ratio, 1.0, "at least")


def measure_feed(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:
    """Moves on batches that the loader brings, one for each as in play, against moves on one batch that is there.

    And the same moves with the next batch made by a thread of its own, against each made in the step.
    """
    scene = Scene.make("fp32", quick=True)
    players = scene.ours()
    settings = replace(scene.settings, batch=replace(scene.settings.batch, clips=8, views=8))
    cycles = 4 if quick else 16
    with tempfile.TemporaryDirectory() as folder:
        loader = _loader(_rows(Path(folder), 16), settings, Path(folder) / "cache")
        seeds = itertools.count()

        def play(batches: Iterator[Batch]) -> None:
            for _ in range(cycles):
                anonymizer_move(players, next(batches), settings.game)
                critics_move(players, next(batches), settings.game)

        def ours(beside: bool | None = None) -> None:
            generator = torch.Generator().manual_seed(0)
            with fed(loader.training(next(seeds)), settings, generator, scene.device, beside) as batches:
                play(batches)

        own, other, ratio = in_turns(ours, lambda: play(itertools.repeat(scene.batch)), repeats, on_step)
        what = f"{cycles} pairs of moves, tiny preset (8 clips, 8 pairs), with loader and augmentation, against without"
        ahead = "the next one made meanwhile" if worth_a_thread(scene.device) else "each made when it is asked for"
        yield Row("feed", what, "s", own, other, ratio, 0.95, "at least", f"a batch for each move, {ahead}")
        own, other, ratio = in_turns(partial(ours, True), partial(ours, False), repeats, on_step)
        what = "the same moves, the next batch made by a thread of its own, against each made in the step"
        note = "" if worth_a_thread(scene.device) else "on a CPU training makes them in the step"
        yield Row("feed-ahead", what, "s", own, other, ratio, None, "at least", note)


def _rows(folder: Path, count: int) -> list[VideoRow]:
    paths = write_videos(folder, count, 240, 320, frames=32)
    return [VideoRow(path, f"action-{number % 2}") for number, path in enumerate(paths)]


def _loader(rows: list[VideoRow], settings: Settings, folder: Path) -> ClipLoader:
    cache = FrameCache(folder, settings.clip.size_px)
    cache.prepare([row.path for row in rows], workers=1, progress=False)
    history = anonymizer_config(settings).history
    return ClipLoader(rows, ["action-0", "action-1"], cache, settings.clip, settings.batch, history)
