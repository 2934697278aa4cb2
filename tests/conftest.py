"""Small real videos for every test that needs them, and one core a process.

Results must not depend on the number of threads; pytest-xdist brings the processes.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from client.video.encode import write_video
from client.video.rows import Row, write_rows

torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):  # noqa: ARG001
    """One more than there are cores: tests of real processes wait as much as they work."""
    return (os.cpu_count() or 1) + 1


COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230), "white": (240, 240, 240)}
FAST = {  # the smallest game that is still the whole game
    "clip.frames": 4,
    "clip.size_px": 16,
    "clip.stride_frames": 1,
    "batch.clips": 4,
    "batch.views": 4,
    "networks.anonymizer_channels": 4,
    "networks.anonymizer_depth": 1,
    "warmup.steps": 2,
    "rounds.warmup": 1,
    "rounds.minimax": 2,
    "rounds.cycles": 1,
    "game.critic_steps": 2,
    "game.catch_up_steps": 1,
    "judge.steps": 3,
    "judge.batch": 4,
    "judge.train_clips": 1,
    "judge.test_clips": 2,
    "device": "cpu",
}


def square_frames(action: str, color: str, phase: int, frames: int = 10, size: int = 32) -> np.ndarray:
    """A coloured square that slides sideways (walk) or up and down (jump)."""
    out = np.full((frames, size, size, 3), 90, np.uint8)
    for t in range(frames):
        place = (phase + 2 * t) % (size - 8)
        y, x = (size // 2 - 4, place) if action == "walk" else (place, size // 2 - 4)
        out[t, y : y + 8, x : x + 8] = COLORS[color]
    return out


@pytest.fixture(scope="session")
def squares(tmp_path_factory) -> Path:
    """A manifest of 16 real H.264 videos: two actions, four colours as identity, two sources, split decided."""
    folder = tmp_path_factory.mktemp("squares")
    rows = []
    for number in range(16):
        action, color = ("walk", "jump")[number % 2], list(COLORS)[(number // 2) % 4]
        path = folder / "videos" / f"{number:02d}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, iter(square_frames(action, color, 3 * number)), fps=12.5)
        split = "test" if number >= 12 else "train"
        look = {"identity": color, "light": "dim" if number % 3 else "bright"}
        rows.append(Row(path, action, f"home-{number % 3}", split, f"camera-{number % 4}", look))
    write_rows(rows, folder / "manifest.csv")
    return folder / "manifest.csv"


@pytest.fixture(scope="session")
def smallest() -> dict[str, object]:
    """Flat overrides of the smallest game, for fixtures that many tests share; to be copied, not changed."""
    return FAST


@pytest.fixture
def fast() -> dict[str, object]:
    """Flat overrides of the smallest game; a copy of one's own to change."""
    return dict(FAST)
