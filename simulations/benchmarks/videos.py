"""Videos for benchmarks: made once a call, with motion and texture in them, so that decoding is real work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.video.encode import write_video


def write_videos(folder: Path, count: int, height: int, width: int, frames: int = 48, fps: float = 25.0) -> list[Path]:
    """H.264 files of a textured picture that drifts behind a bright square."""
    paths = [folder / f"{number:03d}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        write_video(path, _drifting(number, height, width, frames), fps)
    return paths


def _drifting(seed: int, height: int, width: int, frames: int) -> Iterator[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    picture = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    for number in range(frames):
        frame = np.roll(picture, (number, 2 * number), axis=(0, 1)).copy()
        side, left = height // 4, (7 * number) % max(1, width - height // 4)
        frame[height // 3 : height // 3 + side, left : left + side] = 255 - 4 * (number % 32)
        yield frame
