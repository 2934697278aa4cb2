"""What an actor looks like: the private attributes of the synthetic clips.

A look never says anything about a motion, and a motion never about a look (synthetic_motion.py): whatever a network
learns about one of them it has learned from that one alone.
"""

from dataclasses import dataclass, fields

import numpy as np

Colour = tuple[int, int, int]

CLOTHES_COLOURS: dict[str, Colour] = {
    "red": (208, 44, 46),
    "orange": (240, 134, 28),
    "yellow": (246, 214, 64),
    "green": (44, 156, 66),
    "cyan": (70, 196, 214),
    "blue": (38, 84, 214),
    "purple": (140, 60, 186),
    "white": (236, 236, 232),
}
CLOTHES_PATTERNS = ("plain", "stripes", "checks", "dots")
TROUSERS: dict[str, Colour] = {
    "navy": (28, 40, 96),
    "black": (30, 30, 34),
    "beige": (208, 184, 138),
    "grey": (92, 96, 104),
    "brown": (110, 68, 40),
}
SKINS: dict[str, Colour] = {"light": (244, 206, 178), "tan": (204, 150, 108), "dark": (112, 72, 48)}
HAIR_COLOURS: dict[str, Colour] = {
    "black": (24, 22, 24),
    "brown": (92, 56, 30),
    "blond": (226, 190, 96),
    "red": (176, 72, 30),
}
HAIR_SHAPES = ("short", "long", "bun", "afro")
BUILDS = {"slim": 0.80, "average": 1.0, "broad": 1.28}  # thickness of torso and limbs
HEIGHTS = {"short": 0.93, "tall": 1.04}  # of a clip's body height, which varies by more than this from clip to clip

MAX_IDENTITIES = 64  # beyond this, two looks come to differ by little more than the trousers
CAST_DRAWS = 300  # castings tried; the one whose two most similar people differ most is taken


@dataclass(frozen=True)
class Look:
    """One person; every field is a name from the tables above and a column of the manifest."""

    clothes_color: str
    clothes_pattern: str
    trousers: str
    skin: str
    hair_color: str
    hair_shape: str
    build: str
    height: str


VALUES: dict[str, tuple[str, ...]] = {
    "clothes_color": tuple(CLOTHES_COLOURS),
    "clothes_pattern": CLOTHES_PATTERNS,
    "trousers": tuple(TROUSERS),
    "skin": tuple(SKINS),
    "hair_color": tuple(HAIR_COLOURS),
    "hair_shape": HAIR_SHAPES,
    "build": tuple(BUILDS),
    "height": tuple(HEIGHTS),
}
# How plainly two values of a field differ on 48 pixels. Height counts nothing: a clip's scale hides it.
WEIGHTS = {
    "clothes_color": 3.0,
    "clothes_pattern": 1.5,
    "trousers": 2.0,
    "skin": 1.0,
    "hair_color": 0.7,
    "hair_shape": 0.7,
    "build": 1.0,
    "height": 0.0,
}


def draw_cast(identities: int, rng: np.random.Generator) -> list[Look]:
    """Distinct people; each value of each attribute is worn by equally many of them, give or take one."""
    names = [field.name for field in fields(Look)]
    weights_F = np.array([WEIGHTS[name] for name in names])
    best_KF, best_distance = np.zeros((identities, len(names)), dtype=np.int64), -1.0
    for _ in range(CAST_DRAWS):
        cast_KF = np.stack([rng.permutation(np.arange(identities) % len(VALUES[name])) for name in names], axis=1)
        differ_KKF = cast_KF[:, None, :] != cast_KF[None, :, :]
        distance_KK = differ_KKF @ weights_F + np.where(np.eye(identities, dtype=bool), np.inf, 0.0)
        if distance_KK.min() > best_distance:
            best_KF, best_distance = cast_KF, float(distance_KK.min())
    return [Look(**{name: VALUES[name][k] for name, k in zip(names, row, strict=True)}) for row in best_KF]
