"""Where an actor stands: textured backgrounds in which something usually moves.

A background is a kind of place; each site has its own camera there, so colours and the arrangement differ from site to
site. What moves in the background moves at its own pace and knows nothing of the action.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from simulations.synthetic_look import Colour

FLOOR = 0.80  # where wall and floor meet, as a share of the picture's height

HAZE, HAZE_SHARE = (136, 136, 136), 0.46  # the place is farther away than the actor, and paler

Mover = Callable[[ImageDraw.ImageDraw, float], None]  # draws what moves, at a time in seconds


@dataclass(frozen=True)
class Backdrop:
    """A still picture (RGB, square) and what moves in it."""

    still: Image.Image
    move: Mover

    def at(self, seconds: float) -> Image.Image:
        """A fresh picture of the place at this time, behind haze."""
        canvas = self.still.copy()
        self.move(ImageDraw.Draw(canvas), seconds)
        return Image.blend(canvas, Image.new("RGB", canvas.size, HAZE), HAZE_SHARE)


def make_backdrop(name: str, side_px: int, rng: np.random.Generator) -> Backdrop:
    """The place ``name`` (a key of BACKGROUNDS) as one site's camera sees it."""
    return BACKGROUNDS[name](side_px, rng)


def plain_backdrop(side_px: int) -> Backdrop:
    """Mid-grey and still: the picture of a person without a place."""
    return Backdrop(Image.new("RGB", (side_px, side_px), (128, 128, 128)), _nothing)


def _bricks(side: int, rng: np.random.Generator) -> Backdrop:
    still = _floored(_flat(side, (186, 176, 164)), (122, 120, 118), rng)
    pencil = ImageDraw.Draw(still)
    height, width, joint = side / 17, side / 8, max(1, side // 140)
    base = _varied((164, 98, 76), 18, rng)
    for row in range(int(17 * FLOOR) + 1):
        for column in range(-1, 9):
            x, y = (column + 0.5 * (row % 2)) * width, row * height
            box = (x, y, x + width - joint, min(y + height - joint, side * FLOOR - joint))
            if box[3] > box[1]:
                pencil.rectangle(box, fill=_varied(base, 12, rng))
    return Backdrop(_grained(still, rng, 9.0), _nothing)


def _dusk(side: int, rng: np.random.Generator) -> Backdrop:
    top, low = _varied((44, 54, 112), 14, rng), _varied((196, 112, 84), 14, rng)
    still = _floored(_gradient(side, top, low), (78, 72, 84), rng)
    phase, height, colour = rng.uniform(), rng.uniform(0.1, 0.3), _varied((176, 140, 152), 10, rng)
    pace = rng.uniform(0.06, 0.12)

    def drift(pencil: ImageDraw.ImageDraw, seconds: float) -> None:
        x = ((phase + pace * seconds) % 1.4 - 0.2) * side
        for dx, dy, r in ((-0.09, 0.01, 0.05), (0.0, -0.01, 0.07), (0.09, 0.012, 0.045)):
            _ellipse(pencil, x + dx * side, (height + dy) * side, r * side * 1.3, r * side * 0.7, colour)

    return Backdrop(_grained(still, rng, 8.0), drift)


def _bokeh(side: int, rng: np.random.Generator) -> Backdrop:
    still = _floored(_gradient(side, _varied((38, 44, 66), 10, rng), (66, 60, 84)), (54, 50, 60), rng)
    pencil = ImageDraw.Draw(still)
    for _ in range(26):
        r = rng.uniform(0.03, 0.10) * side
        x, y = rng.uniform(0, side), rng.uniform(0, FLOOR * side)
        _ellipse(pencil, x, y, r, r, _varied((122, 104, 110), 46, rng))
    still = still.filter(ImageFilter.GaussianBlur(side / 60))
    lights = [(*rng.uniform(0.08, 0.92, 2), rng.uniform(0.02, 0.04), rng.uniform(), _glow(rng)) for _ in range(4)]

    def swim(pencil: ImageDraw.ImageDraw, seconds: float) -> None:
        for x, y, r, phase, colour in lights:
            bob = 0.04 * sin(2 * pi * (phase + 0.35 * seconds))
            _ellipse(pencil, x * side, (FLOOR * y + bob) * side, r * side, r * side, colour)

    return Backdrop(_grained(still, rng, 6.0), swim)


def _plant(side: int, rng: np.random.Generator) -> Backdrop:
    still = _floored(_flat(side, _varied((206, 198, 180), 12, rng)), (150, 116, 84), rng)
    pencil = ImageDraw.Draw(still)
    skirting = _varied((236, 232, 222), 6, rng)
    pencil.rectangle((0, side * (FLOOR - 0.035), side, side * FLOOR), fill=skirting)
    x, frame = side * (0.16 if rng.uniform() < 0.5 else 0.84), side * rng.uniform(0.35, 0.6)
    pencil.rectangle((frame, side * 0.12, frame + side * 0.2, side * 0.3), fill=_varied((120, 136, 150), 26, rng))
    phase, leaf = rng.uniform(), _varied((62, 122, 60), 16, rng)
    angles = np.linspace(-0.9, 0.9, 6) + rng.uniform(-0.1, 0.1, 6)

    def sway(pencil: ImageDraw.ImageDraw, seconds: float) -> None:
        root_y, bend = side * 0.72, 0.16 * sin(2 * pi * (phase + 0.5 * seconds))
        for k, angle in enumerate(angles):
            for share in (0.5, 0.75, 1.0):
                length = side * (0.24 + 0.05 * (k % 2)) * share
                tilt = angle + bend * share
                _ellipse(
                    pencil,
                    x + length * sin(tilt),
                    root_y - length * (1 - 0.3 * abs(tilt)),
                    side * 0.026,
                    side * 0.026,
                    leaf,
                )
            pencil.line((x, root_y, x + length * sin(tilt), root_y - length * (1 - 0.3 * abs(tilt))), leaf, side // 70)
        pencil.rectangle((x - side * 0.05, root_y, x + side * 0.05, side * 0.86), fill=(170, 92, 62))

    return Backdrop(_grained(still, rng, 7.0), sway)


def _screen(side: int, rng: np.random.Generator) -> Backdrop:
    still = _floored(_gradient(side, _varied((88, 104, 116), 12, rng), (124, 136, 142)), (92, 84, 76), rng)
    left = side * (0.04 if rng.uniform() < 0.5 else 0.62)
    top = side * rng.uniform(0.14, 0.26)
    pencil = ImageDraw.Draw(still)
    pencil.rectangle(
        (left - side * 0.015, top - side * 0.015, left + side * 0.355, top + side * 0.235), fill=(26, 26, 30)
    )
    phase, hue = rng.uniform(), rng.uniform()

    def flicker(pencil: ImageDraw.ImageDraw, seconds: float) -> None:
        scene = int(2.5 * (seconds + phase))  # a new picture every 0.4 s
        shade = [0.5 + 0.35 * sin(2 * pi * (hue + 0.37 * scene + k / 3)) for k in range(3)]
        colour = (int(225 * shade[0]), int(225 * shade[1]), int(235 * shade[2]))
        pencil.rectangle((left, top, left + side * 0.34, top + side * 0.22), fill=colour)
        bar = top + side * 0.05 + side * 0.09 * (0.5 + 0.5 * sin(2.1 * seconds + scene))
        pencil.rectangle((left + side * 0.04, bar, left + side * 0.24, bar + side * 0.03), fill=(232, 232, 226))

    return Backdrop(_grained(still, rng, 8.0), flicker)


def _street(side: int, rng: np.random.Generator) -> Backdrop:
    still = _floored(_gradient(side, (150, 178, 206), _varied((206, 214, 216), 10, rng)), (98, 98, 102), rng)
    pencil = ImageDraw.Draw(still)
    for k in range(5):
        x, top, wall = (k * 0.21 - 0.02) * side, rng.uniform(0.08, 0.4) * side, _varied((150, 138, 128), 26, rng)
        pencil.rectangle((x, top, x + side * 0.2, side * FLOOR), fill=wall)
        for row in range(int((FLOOR * side - top) / (0.1 * side))):
            for column in range(3):
                wx, wy = x + (0.03 + 0.055 * column) * side, top + (0.03 + 0.1 * row) * side
                pencil.rectangle((wx, wy, wx + side * 0.032, wy + side * 0.05), fill=_varied((92, 104, 118), 26, rng))
    phase, pace, paint = rng.uniform(), rng.uniform(0.3, 0.5), _varied((140, 120, 124), 60, rng)
    pace *= 1.0 if rng.uniform() < 0.5 else -1.0

    def pass_by(pencil: ImageDraw.ImageDraw, seconds: float) -> None:
        x, y = ((phase + pace * seconds) % 1.6 - 0.3) * side, side * 0.76
        pencil.rounded_rectangle((x - side * 0.09, y - side * 0.1, x + side * 0.09, y), side * 0.04, fill=paint)
        pencil.rounded_rectangle(
            (x - side * 0.17, y - side * 0.05, x + side * 0.17, y + side * 0.03), side * 0.03, fill=paint
        )
        for wheel in (-0.1, 0.1):
            _ellipse(pencil, x + wheel * side, y + side * 0.03, side * 0.03, side * 0.03, (30, 30, 32))

    return Backdrop(_grained(still, rng, 7.0), pass_by)


def _tiles(side: int, rng: np.random.Generator) -> Backdrop:
    base = _varied((150, 178, 176), 14, rng)
    still = _floored(_flat(side, base), (172, 164, 158), rng)
    pencil = ImageDraw.Draw(still)
    step = side / 9
    for row in range(int(9 * FLOOR) + 1):
        for column in range(10):
            box = (column * step, row * step, (column + 0.94) * step, min((row + 0.94) * step, side * FLOOR))
            dark = (row + column) % 2 == 0
            pencil.rectangle(box, fill=_varied(base, 7, rng) if dark else _varied((214, 222, 218), 7, rng))
    phase, x = rng.uniform(), side * rng.uniform(0.15, 0.85)

    def swing(pencil: ImageDraw.ImageDraw, seconds: float) -> None:
        tilt = 0.35 * sin(2 * pi * (phase + 0.45 * seconds))
        end_x, end_y = x + side * 0.2 * sin(tilt), side * 0.2
        pencil.line((x, 0, end_x, end_y), (60, 56, 54), max(1, side // 90))
        _ellipse(pencil, end_x, end_y, side * 0.05, side * 0.04, (244, 226, 150))

    return Backdrop(_grained(still, rng, 6.0), swing)


def _meadow(side: int, rng: np.random.Generator) -> Backdrop:
    still = _gradient(side, (128, 180, 226), _varied((206, 226, 232), 8, rng))
    pencil = ImageDraw.Draw(still)
    for level, green in ((0.52, (134, 160, 120)), (0.64, (112, 150, 92)), (0.76, (98, 140, 72))):
        shift, hill = rng.uniform(0, 2 * pi), _varied(green, 10, rng)
        ridge = [(x, side * (level + 0.05 * sin(shift + 5 * x / side))) for x in range(0, side + 8, 8)]
        pencil.polygon([*ridge, (side + 8, side), (0, side)], fill=hill)
    trees = [
        (rng.uniform(0.05, 0.95), rng.uniform(0.1, 0.15), rng.uniform(), _varied((56, 104, 56), 14, rng))
        for _ in range(3)
    ]

    def sway(pencil: ImageDraw.ImageDraw, seconds: float) -> None:
        for x, crown, phase, leaf in trees:
            bend = 0.03 * sin(2 * pi * (phase + 0.4 * seconds))
            pencil.line((x * side, side * 0.72, (x + bend) * side, side * 0.5), (96, 72, 52), max(2, side // 40))
            for dx, dy in ((-0.5, 0.2), (0.5, 0.2), (0.0, -0.4)):
                centre = ((x + bend + dx * crown) * side, (0.46 + dy * crown) * side)
                _ellipse(pencil, *centre, crown * 0.75 * side, crown * 0.7 * side, leaf)

    return Backdrop(_grained(still, rng, 9.0), sway)


BACKGROUNDS: dict[str, Callable[[int, np.random.Generator], Backdrop]] = {
    "bokeh": _bokeh,
    "bricks": _bricks,
    "dusk": _dusk,
    "meadow": _meadow,
    "plant": _plant,
    "screen": _screen,
    "street": _street,
    "tiles": _tiles,
}


def _nothing(pencil: ImageDraw.ImageDraw, seconds: float) -> None:
    """Nothing moves here."""


def _ellipse(pencil: ImageDraw.ImageDraw, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
    pencil.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)


def _varied(colour: Colour, spread: float, rng: np.random.Generator) -> Colour:
    """The colour moved by up to ``spread`` in each channel."""
    moved = np.clip(np.array(colour) + rng.uniform(-spread, spread, 3), 0, 255)
    return (int(moved[0]), int(moved[1]), int(moved[2]))


def _glow(rng: np.random.Generator) -> Colour:
    return _varied((206, 176, 130), 44, rng)


def _flat(side: int, colour: Colour) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def _gradient(side: int, top: Colour, low: Colour) -> Image.Image:
    share_H1 = np.minimum(np.linspace(0, 1 / FLOOR, side), 1.0)[:, None]
    column_H3 = np.array(top) * (1 - share_H1) + np.array(low) * share_H1
    return Image.fromarray(np.broadcast_to(column_H3[:, None], (side, side, 3)).astype(np.uint8))


def _floored(wall: Image.Image, colour: Colour, rng: np.random.Generator) -> Image.Image:
    """The wall with a floor before it, which darkens towards the camera."""
    side = wall.width
    floor = _gradient(side, _varied(colour, 10, rng), _varied(colour, 10, rng))
    wall.paste(floor.crop((0, 0, side, side - int(side * FLOOR))), (0, int(side * FLOOR)))
    return wall


def _grained(still: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Adds soft stains at three scales: no surface of a real place is of one colour."""
    side = still.width
    stain_HW = np.zeros((side, side), dtype=np.float32)
    for cells in (5, 14, 40):
        grid = rng.normal(0.0, strength, (cells, cells)).astype(np.float32)
        stain_HW += np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BILINEAR))
    picture_HWC = np.asarray(still, dtype=np.float32) + stain_HW[..., None]
    return Image.fromarray(np.clip(picture_HWC, 0, 255).astype(np.uint8))
