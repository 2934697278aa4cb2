"""What playing as sites costs: against pooled training, side by side, on Ray, and a hundred sites' memory."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from client.video.rows import Row as VideoRow
from server.runs import RunFolder
from simulations.benchmarks.measured import Row, Spread, in_turns
from simulations.benchmarks.videos import write_videos
from simulations.centralized import centralize
from simulations.compare.plan import pooled
from simulations.federated import simulate, sites_at_once
from simulations.laboratory import Laboratory
from spact_models.errors import RunStopped
from spact_models.resident import peak_rss_mb
from spact_models.run_config import load_settings
from spact_models.settings import Settings

VIDEOS_A_SITE = 24  # no fewer than a batch has views
MANY, MANY_GIB = 100, 6.0
AT_ONCE = 4
Training = tuple[Callable[[Laboratory], object], Settings]
MOST_REPEATS = {16: 2}  # pairs; 16 sites take long
OVERHEAD = 1.05  # what a federation may take, of pooled training's time


def measure_4(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:
    """Four sites."""
    yield _overhead(4, quick, repeats, on_step)


def measure_16(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:
    """Sixteen sites."""
    yield _overhead(16, quick, repeats, on_step)


def measure_serial(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:
    """Four sites one after the other, each with all cores, as on a GPU: the overhead without what sharing wins."""
    yield _overhead(4, quick, repeats, on_step, at_once=1)


def measure_at_once(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:
    """Sites on a CPU's cores at the same time, against one after the other with all cores each."""
    settings = _settings(AT_ONCE, quick)
    alone = replace(settings, simulation=replace(settings.simulation, sites_at_once=1))
    own, other, ratio = _played(AT_ONCE, (simulate, settings), (simulate, alone), repeats, on_step)
    note = f"{torch.get_num_threads()} threads; nothing to win on one, nor on a GPU, where sites stay one at a time"
    what = f"{AT_ONCE} sites of the tiny preset in one process at the same time, against one after the other"
    yield Row("sites-at-once", what, "s", own, other, ratio, 1.0, "at least", note)


def measure_ray(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:
    """The same federation on Flower's simulation runtime, whose start counts, and in this process."""
    settings = _settings(AT_ONCE, quick)
    on_ray = partial(simulate, engine="ray")
    own, other, ratio = _played(AT_ONCE, (on_ray, settings), (simulate, settings), repeats, on_step)
    what = f"{AT_ONCE} sites of the tiny preset on Ray, its start included, against in one process"
    yield Row("federation-ray", what, "s", own, other, ratio.turned, None, "at most", "ratio: Ray's over the process'")


def measure_100(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:  # noqa: ARG001
    """Peak memory of a hundred sites' federation, in a process of its own."""
    words = [sys.executable, "-m", __name__, str(MANY)]
    peak_gib = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1]) / 2**10
    on_step()
    what = f"peak memory of {MANY} sites of the tiny preset (batches of 8) in one process, two rounds"
    together = sites_at_once(_settings(MANY, small=True), MANY, torch.device("cpu"))
    note = f"on the CPU, {together} of them at work at the same time: each of those has its networks in memory"
    yield Row("sites-100", what, "GiB", Spread.of([peak_gib]), None, None, MANY_GIB, "at most", note)


def _overhead(sites: int, quick: bool, repeats: int, on_step: Callable[[], object], at_once: int = 0) -> Row:
    """Equal optimizer steps on the same videos: as sites, ``at_once`` of them (0: as many as play by default), pooled.

    Sites side by side use cores that pooled training, which is one game, leaves idle.
    """
    settings = _settings(sites, quick)
    chosen = replace(settings, simulation=replace(settings.simulation, sites_at_once=at_once))
    twin = (centralize, pooled(settings, sites))
    pairs = min(repeats, MOST_REPEATS.get(sites, repeats))
    own, other, ratio = _played(sites, (simulate, chosen), twin, pairs, on_step)
    how = "one after the other" if at_once == 1 else "at the same time on a CPU's cores"
    name = "federation-serial" if at_once == 1 else f"federation-{sites}"
    what = f"{sites} sites in one process against pooled training, equal steps, tiny preset, rounds cut to a third"
    note = f"ratio: ours over the twin's; sites {how}"
    return Row(name, what, "s", own, other, ratio.turned, OVERHEAD, "at most", note)


def _played(
    sites: int, ours: Training, twin: Training, repeats: int, on_step: Callable[[], object]
) -> tuple[Spread, Spread, Spread]:
    """Two ways to train on the same videos, in turns, each time in a run folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        rows = _rows(Path(folder) / "videos", sites * VIDEOS_A_SITE)
        runs = itertools.count()

        def play(training: Training) -> None:
            train, settings = training
            train(_laboratory(settings, rows, Path(folder) / "cache", Path(folder) / f"run-{next(runs)}"))

        return in_turns(partial(play, ours), partial(play, twin), repeats, on_step)


def _settings(sites: int, small: bool) -> Settings:
    """The preset's own batches (``small``: little ones), in rounds much shorter than its own: a site costs by round."""
    return load_settings({
        "preset": "tiny",
        "simulation.sites": sites,
        **({"batch.clips": 8, "batch.views": 8} if small else {}),
        "warmup.steps": 4,
        "rounds.warmup": 1,
        "rounds.minimax": 1,
        "rounds.cycles": 1 if small else 6,
    })  # fmt: skip


def _rows(folder: Path, count: int) -> list[VideoRow]:
    """All of them training rows: the closing evaluation has nothing to do, as in pooled training."""
    folder.mkdir(parents=True)
    paths = write_videos(folder, count, 48, 64, frames=20)
    return [VideoRow(path, f"action-{number % 2}", split="train") for number, path in enumerate(paths)]


def _laboratory(settings: Settings, rows: list[VideoRow], cache: Path, run: Path) -> Laboratory:
    lab = Laboratory(settings, RunFolder(run), list(rows), cache, time.monotonic())
    if lab.cache.prepare([row.path for row in rows], workers=1, progress=False):
        raise RunStopped("a video made for the benchmark cannot be read")
    return lab


def main(sites: int) -> None:
    """Play ``sites`` sites and print this process' peak memory in MB."""
    settings = _settings(sites, small=True)
    settings = replace(settings, warmup=replace(settings.warmup, steps=1), device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        rows = _rows(Path(folder) / "videos", sites * 8)
        simulate(_laboratory(settings, rows, Path(folder) / "cache", Path(folder) / "run"))
    print(peak_rss_mb())


if __name__ == "__main__":
    main(int(sys.argv[1]))
