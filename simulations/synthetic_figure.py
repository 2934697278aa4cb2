"""Draws one actor: a look (synthetic_look.py) in a pose (synthetic_motion.py), limbs as thick capsules.

Everything is drawn at the scene's enlarged size and without smoothing; scaling the finished picture down smooths it.
"""

from dataclasses import dataclass
from math import cos, sin

import numpy as np
from PIL import Image, ImageDraw

from simulations.synthetic_look import (
    BUILDS,
    CLOTHES_COLOURS,
    HAIR_COLOURS,
    HEIGHTS,
    SKINS,
    TROUSERS,
    Colour,
    Look,
)
from simulations.synthetic_motion import Limb, Pose

# Lengths in body heights; the classical figure, with a slightly large head so that a face shows on few pixels.
THIGH, SHIN, TORSO, NECK, HEAD = 0.245, 0.235, 0.30, 0.045, 0.078
UPPER_ARM, FOREARM = 0.165, 0.155
PATTERN_PERIOD = 0.115  # of the body height: about 7 px on a 96 px picture, still visible at 48 px
FAR_SHADE = 0.78  # limbs on the far side are darker, so that two crossing legs can be told apart

Point = tuple[float, float]


@dataclass(frozen=True)
class Puppet:
    """An actor made ready for one clip: colours chosen, cloth woven."""

    look: Look
    height_px: float
    mirrored: bool
    cloth: Image.Image  # a tile of the clothes' pattern, larger than any torso

    def draw(self, canvas: Image.Image, pose: Pose, foot_x: float, ground_y: float) -> None:
        """Into ``canvas`` (RGB), standing at (foot_x, ground_y) in its pixels."""
        pen = _Pen(ImageDraw.Draw(canvas), foot_x, self.height_px, -1.0 if self.mirrored else 1.0)
        skin, trousers = SKINS[self.look.skin], TROUSERS[self.look.trousers]
        build = BUILDS[self.look.build]
        hip_y = ground_y - self.height_px * (_leg_length(pose) + pose.lift + 0.018)
        self._draw_shadow(canvas, foot_x, ground_y, pose.lift)
        hip = (foot_x, hip_y)
        neck = pen.step(hip, np.pi - pose.lean, TORSO)
        shoulders = [pen.shift(neck, side * 0.082 * build, 0.03) for side in (-1.0, 1.0)]
        hips = [pen.shift(hip, side * 0.042 * build, 0.0) for side in (-1.0, 1.0)]

        self._draw_hair_behind(pen, neck, pose.lean)
        self._draw_arm(pen, shoulders[0], pose.arm_left, FAR_SHADE)
        _draw_leg(pen, hips[0], pose.leg_left, _shaded(trousers, FAR_SHADE), build)
        _draw_leg(pen, hips[1], pose.leg_right, trousers, build)
        pen.capsule(neck, pen.step(neck, np.pi - pose.lean, NECK), 0.03, 0.03, _shaded(skin, 0.88))
        self._draw_torso(canvas, pen, hip, neck, build)
        self._draw_head(pen, neck, pose.lean)
        self._draw_arm(pen, shoulders[1], pose.arm_right, 1.0)

    def _draw_shadow(self, canvas: Image.Image, x: float, y: float, lift: float) -> None:
        half = self.height_px * 0.17 * (1.0 - lift)
        box = [int(x - half), int(y - half * 0.18), int(x + half), int(y + half * 0.22)]
        mask = Image.new("L", (box[2] - box[0], box[3] - box[1]))
        ImageDraw.Draw(mask).ellipse((0, 0, mask.width - 1, mask.height - 1), fill=90)
        canvas.paste((0, 0, 0), (box[0], box[1]), mask)

    def _draw_arm(self, pen: "_Pen", shoulder: Point, arm: Limb, shade: float) -> None:
        build = BUILDS[self.look.build]
        skin, sleeve = SKINS[self.look.skin], CLOTHES_COLOURS[self.look.clothes_color]
        elbow = pen.step(shoulder, arm[0], UPPER_ARM)
        hand = pen.step(elbow, arm[1], FOREARM)
        pen.capsule(elbow, hand, 0.030 * build, 0.024 * build, _shaded(skin, shade))
        pen.disc(hand, 0.032, _shaded(skin, shade))
        pen.capsule(shoulder, elbow, 0.042 * build, 0.036 * build, _shaded(sleeve, shade * 0.94))

    def _draw_torso(self, canvas: Image.Image, pen: "_Pen", hip: Point, neck: Point, build: float) -> None:
        """The torso's outline cut out of the cloth; the cloth moves with the body."""
        reach = int(self.height_px * 0.24 * build) + 2
        left, top = int(neck[0] + hip[0]) // 2 - reach, int(neck[1]) - 8
        mask = Image.new("L", (2 * reach, int(hip[1] - neck[1]) + reach // 2 + 8))
        cut = _Pen(ImageDraw.Draw(mask), pen.foot_x, pen.height_px, pen.sign)
        neck, hip = (neck[0] - left, neck[1] - top), (hip[0] - left, hip[1] - top)
        corners = [
            cut.shift(neck, -0.085 * build, 0.03),
            cut.shift(neck, 0.085 * build, 0.03),
            cut.shift(hip, 0.052 * build, 0.0),
            cut.shift(hip, -0.052 * build, 0.0),
        ]
        radius = 0.034 * build
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
            cut.capsule(start, end, radius, radius, 255)
        cut.pencil.polygon(corners, fill=255)
        anchor_x, anchor_y = self.cloth.width // 2 - int(neck[0]), self.cloth.height // 4 - int(neck[1])
        patch = self.cloth.crop((anchor_x, anchor_y, anchor_x + mask.width, anchor_y + mask.height))
        canvas.paste(patch, (left, top), mask)

    def _draw_hair_behind(self, pen: "_Pen", neck: Point, lean: float) -> None:
        hair = _shaded(HAIR_COLOURS[self.look.hair_color], 0.85)
        head = _head_centre(pen, neck, lean)
        if self.look.hair_shape == "long":
            pen.capsule(pen.shift(head, -0.012, 0.0), pen.shift(neck, -0.03, 0.05), 0.094, 0.085, hair)
        elif self.look.hair_shape == "afro":
            pen.disc(pen.shift(head, -0.008, -0.03), 0.128, hair)

    def _draw_head(self, pen: "_Pen", neck: Point, lean: float) -> None:
        skin, hair = SKINS[self.look.skin], HAIR_COLOURS[self.look.hair_color]
        head = _head_centre(pen, neck, lean)
        pen.disc(head, HEAD, skin)
        pen.cap(head, HEAD * 1.1, hair)
        if self.look.hair_shape == "bun":
            pen.disc(pen.shift(head, -0.035, -0.105), 0.052, hair)
        for x in (-0.006, 0.046):  # eyes, looking where the body faces
            pen.disc(pen.shift(head, x, 0.008), 0.0095, (20, 16, 16))


@dataclass(frozen=True)
class _Pen:
    """Draws shapes given in body heights, mirrored if ``sign`` is -1."""

    pencil: ImageDraw.ImageDraw
    foot_x: float
    height_px: float
    sign: float

    def step(self, start: Point, angle: float, length: float) -> Point:
        """Where a segment of this angle and length ends."""
        return self.shift(start, length * sin(angle), length * cos(angle))

    def shift(self, start: Point, dx: float, dy: float) -> Point:
        return (start[0] + self.sign * dx * self.height_px, start[1] + dy * self.height_px)

    def disc(self, centre: Point, radius: float, colour: Colour | int) -> None:
        r = radius * self.height_px
        self.pencil.ellipse((centre[0] - r, centre[1] - r, centre[0] + r, centre[1] + r), fill=colour)

    def cap(self, centre: Point, radius: float, colour: Colour) -> None:
        """Hair: the upper part of a disc, lower at the back of the head."""
        r = radius * self.height_px
        box = (centre[0] - r, centre[1] - r, centre[0] + r, centre[1] + r)
        first, last = (150, 340) if self.sign > 0 else (200, 390)
        self.pencil.chord(box, first, last, fill=colour)

    def capsule(self, start: Point, end: Point, radius: float, end_radius: float, colour: Colour | int) -> None:
        """A limb that narrows from ``radius`` to ``end_radius``."""
        self.disc(start, radius, colour)
        self.disc(end, end_radius, colour)
        dx, dy = end[0] - start[0], end[1] - start[1]
        length = max((dx * dx + dy * dy) ** 0.5, 1e-6)
        nx, ny = -dy / length * self.height_px, dx / length * self.height_px
        self.pencil.polygon(
            [
                (start[0] + nx * radius, start[1] + ny * radius),
                (end[0] + nx * end_radius, end[1] + ny * end_radius),
                (end[0] - nx * end_radius, end[1] - ny * end_radius),
                (start[0] - nx * radius, start[1] - ny * radius),
            ],
            fill=colour,
        )


def make_puppet(look: Look, body_px: float, mirrored: bool) -> Puppet:
    """``body_px`` is the height of an average body in this clip."""
    height_px = body_px * HEIGHTS[look.height]
    return Puppet(look, height_px, mirrored, _weave(look, height_px))


def _draw_leg(pen: _Pen, hip: Point, leg: Limb, colour: Colour, build: float) -> None:
    knee = pen.step(hip, leg[0], THIGH)
    ankle = pen.step(knee, leg[1], SHIN)
    pen.capsule(ankle, pen.shift(ankle, 0.045, 0.006), 0.026, 0.02, (44, 40, 42))
    pen.capsule(knee, ankle, 0.044 * build, 0.032 * build, colour)
    pen.capsule(hip, knee, 0.056 * build, 0.046 * build, colour)


def _head_centre(pen: _Pen, neck: Point, lean: float) -> Point:
    return pen.step(neck, np.pi - 0.8 * lean, NECK + HEAD)


def _leg_length(pose: Pose) -> float:
    """From the hip down to the lower foot."""
    return max(THIGH * cos(leg[0]) + SHIN * cos(leg[1]) for leg in (pose.leg_left, pose.leg_right))


def _weave(look: Look, height_px: float) -> Image.Image:
    """A square tile of the clothes' colour and pattern, 0.9 body heights wide."""
    base = np.array(CLOTHES_COLOURS[look.clothes_color], dtype=np.uint8)
    bright = base @ np.array([0.299, 0.587, 0.114]) > 140
    second = np.array((36, 36, 58) if bright else (246, 244, 236), dtype=np.uint8)
    side, period = int(height_px * 0.9), height_px * PATTERN_PERIOD
    y_11, x_11 = np.meshgrid(np.arange(side) / period, np.arange(side) / period, indexing="ij")
    if look.clothes_pattern == "stripes":
        mark = y_11 % 1.0 < 0.45
    elif look.clothes_pattern == "checks":
        mark = (np.floor(1.6 * y_11) + np.floor(1.6 * x_11)) % 2 == 0
    elif look.clothes_pattern == "dots":
        row = np.floor(y_11 * 1.2)
        mark = ((y_11 * 1.2) % 1.0 - 0.5) ** 2 + ((x_11 * 1.2 + 0.5 * row) % 1.0 - 0.5) ** 2 < 0.30**2
    else:
        mark = np.zeros((side, side), dtype=bool)
    return Image.fromarray(np.where(mark[..., None], second, base))


def _shaded(colour: Colour, shade: float) -> Colour:
    return (int(colour[0] * shade), int(colour[1] * shade), int(colour[2] * shade))
