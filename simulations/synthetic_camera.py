"""The camera of the synthetic clips: how it shakes, what its sensor makes of a drawn scene, where it sees the actor.

A scene is drawn larger than the picture by ``margin`` canvas pixels on every side, so that the camera can move.
"""

from math import pi

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.video.boxes import Box

Floats = NDArray[np.float64]

MARGIN = 0.04  # of the picture's side, drawn on every side so that the camera can move
SHAKE_SMOOTH, SHAKE_JERK = 0.7 / 48, 0.25 / 48  # of the side: together about one pixel of 48
NOISE = 2.5 / 255  # standard deviation of the sensor's noise
BOX_MARGIN = 0.02  # of the side, left around an actor: a pixel of 48, for what scaling and the codec smear


def shake(seconds_T: Floats, rng: np.random.Generator) -> Floats:
    """(T, 2) camera offsets as shares of the side: a slow sway and small jerks, never beyond the drawn margin."""
    axes = []
    for _ in range(2):
        slow, quick, phase, other = rng.uniform(0.3, 0.7), rng.uniform(0.9, 1.6), rng.uniform(), rng.uniform()
        sway_T = 0.65 * np.sin(2 * pi * (phase + slow * seconds_T)) + 0.35 * np.sin(
            2 * pi * (other + quick * seconds_T)
        )
        axes.append(SHAKE_SMOOTH * sway_T + SHAKE_JERK * rng.standard_normal(len(seconds_T)))
    shake_T2: Floats = np.clip(np.stack(axes, axis=1), -MARGIN, MARGIN)
    return shake_T2


def expose(
    canvas: Image.Image, size_px: int, margin: int, shake_2: Floats, light: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """What the sensor makes of the drawn scene: moved, scaled down, brightened or darkened, noisy."""
    left, top = margin + shake_2
    side = canvas.width - 2 * margin
    box = (float(left), float(top), float(left) + side, float(top) + side)
    small = canvas.resize((size_px, size_px), Image.Resampling.BOX, box=box)
    frame_HWC = np.asarray(small, dtype=np.float32) * np.float32(light)
    frame_HWC += rng.standard_normal(frame_HWC.shape, dtype=np.float32) * np.float32(255 * NOISE)
    exposed_HWC: NDArray[np.uint8] = np.clip(np.rint(frame_HWC), 0, 255).astype(np.uint8)
    return exposed_HWC


def seen_box(drawn: Image.Image, margin: int, shake_2: Floats) -> Box | None:
    """Where the final picture shows what was drawn (not black in ``drawn``); None where it shows nothing of it."""
    found = drawn.getbbox()
    if found is None:
        return None
    start_22 = np.stack([margin + shake_2] * 2)  # left, top of the picture on the canvas
    corners_22 = (np.array(found).reshape(2, 2) - start_22) / (drawn.width - 2 * margin)
    low_2, high_2 = np.clip(corners_22 + np.array([[-BOX_MARGIN], [BOX_MARGIN]]), 0.0, 1.0)
    return Box(*low_2.tolist(), *high_2.tolist()) if (low_2 < high_2).all() else None
