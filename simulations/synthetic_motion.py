"""How an actor moves: the action, a pose as a function of time, for every body alike.

Angles are in radians in the picture plane, 0 = straight down, positive = towards the right-hand side of the picture;
lengths are in body heights. Everyone faces right; a mirrored clip is flipped when drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np

PERIOD_SECONDS = 1.28  # 8 frames at stride 2 and 12.5 frames a second: a clip shows about one cycle
TEMPO = (0.85, 1.2)  # slowest and fastest actor; narrow enough that the clip still shows most of a cycle
AMPLITUDE = (0.88, 1.1)
WALK_SPEED = (0.25, 0.45)  # body heights a second, for the half of the walkers who get anywhere

Limb = tuple[float, float]  # angles of upper arm and forearm, or of thigh and shin


@dataclass(frozen=True)
class Pose:
    """Left and right are those of the picture. The lower foot stands on the ground, ``lift`` above it."""

    arm_left: Limb
    arm_right: Limb
    leg_left: Limb
    leg_right: Limb
    lean: float = 0.0  # of the torso
    lift: float = 0.0


@dataclass(frozen=True)
class Manner:
    """How this one clip performs its action; drawn without regard to who acts."""

    phase: float  # cycles
    cycles_a_second: float
    amplitude: float
    mirrored: bool
    rest: float  # how far idle arms hang from the body, radians
    speed: float  # body heights a second to the right; 0 = on the spot


def draw_manner(action: str, rng: np.random.Generator) -> Manner:
    """Always the same draws, whatever the action, so that only the action's own meaning differs."""
    phase, tempo, amplitude = rng.uniform(), rng.uniform(*TEMPO), rng.uniform(*AMPLITUDE)
    mirrored, rest = bool(rng.uniform() < 0.5), rng.uniform(0.08, 0.28)
    travels, speed = bool(rng.uniform() < 0.5), rng.uniform(*WALK_SPEED)
    return Manner(
        phase=phase,
        cycles_a_second=tempo / PERIOD_SECONDS,
        amplitude=amplitude,
        mirrored=mirrored,
        rest=rest,
        speed=speed if action == "walk" and travels else 0.0,
    )


def pose_at(action: str, manner: Manner, seconds: float) -> Pose:
    """The pose at a moment of a clip."""
    return ACTIONS[action](manner.phase + seconds * manner.cycles_a_second, manner)


def _walk(phase: float, manner: Manner) -> Pose:
    swing = 0.52 * manner.amplitude * sin(2 * pi * phase)
    forward = cos(2 * pi * phase)  # > 0 while the right leg swings forward, knee bent
    return Pose(
        arm_left=(swing * 0.95, swing * 0.95 + 0.35),
        arm_right=(-swing * 0.95, -swing * 0.95 + 0.35),
        leg_left=(-swing, -swing - 0.1 - 0.85 * max(0.0, -forward)),
        leg_right=(swing, swing - 0.1 - 0.85 * max(0.0, forward)),
        lean=0.06,
    )


def _wave(phase: float, manner: Manner) -> Pose:
    swing = manner.amplitude * sin(4 * pi * phase)  # two strokes a cycle: a hand is quicker than a body
    return Pose(
        arm_left=(-manner.rest, -manner.rest),
        arm_right=(2.15 + 0.3 * swing, 2.8 + 0.95 * swing),
        leg_left=(-0.1, -0.08),
        leg_right=(0.1, 0.08),
        lean=0.03 * swing,
    )


def _jump(phase: float, manner: Manner) -> Pose:
    phase %= 1.0
    flight = (phase - 0.4) / 0.4  # 0...1 in the air
    airborne = 0.0 < flight < 1.0
    bend = 0.0 if airborne else 0.5 * (1 - cos(2 * pi * ((phase - 0.8) % 1.0) / 0.6))
    bend *= 0.75 * manner.amplitude
    rise = sin(pi * flight) if airborne else 0.0
    arm = manner.rest + 0.9 * rise
    return Pose(
        arm_left=(-arm, -arm - 0.5 * rise),
        arm_right=(arm, arm + 0.5 * rise),
        leg_left=(bend - 0.05, -bend * 0.9 - 0.05),
        leg_right=(bend + 0.05, -bend * 0.9 + 0.05),
        lean=0.3 * bend,
        lift=0.2 * manner.amplitude * 4 * flight * (1 - flight) if airborne else 0.0,
    )


def _jumping_jack(phase: float, manner: Manner) -> Pose:
    spread = 0.5 * (1 - cos(2 * pi * phase))
    arm = manner.rest + (2.75 - manner.rest) * spread
    leg = 0.05 + 0.48 * manner.amplitude * spread
    return Pose(
        arm_left=(-arm, -arm - 0.1),
        arm_right=(arm, arm + 0.1),
        leg_left=(-leg, -leg),
        leg_right=(leg, leg),
        lift=0.05 * manner.amplitude * abs(sin(2 * pi * phase)),
    )


def _box(phase: float, manner: Manner) -> Pose:
    beat = sin(2 * pi * phase)
    near, far = max(0.0, beat) ** 0.7, max(0.0, -beat) ** 0.7
    return Pose(
        arm_left=_punch(far, manner),
        arm_right=_punch(near, manner),
        leg_left=(-0.3, -0.4),
        leg_right=(0.36, 0.16),
        lean=0.08 + 0.1 * max(near, far),
    )


def _punch(reach: float, manner: Manner) -> Limb:
    """From the guard before the chin (0) to the stretched arm (1)."""
    reach *= min(1.0, manner.amplitude)
    return (0.45 + 1.1 * reach, 2.65 - 1.05 * reach)


def _squat(phase: float, manner: Manner) -> Pose:
    depth = 0.5 * (1 - cos(2 * pi * phase)) * manner.amplitude
    arm = manner.rest + 1.25 * depth
    return Pose(
        arm_left=(-arm, -arm),
        arm_right=(arm, arm),
        leg_left=(-0.12 - 0.95 * depth, -0.06 + 0.8 * depth),
        leg_right=(0.12 + 0.95 * depth, 0.06 - 0.8 * depth),
    )


def _kick(phase: float, manner: Manner) -> Pose:
    kick = max(0.0, sin(2 * pi * phase)) * manner.amplitude
    chamber = 2.0 * kick * max(0.0, 1.0 - kick)  # the knee comes first, the foot follows
    return Pose(
        arm_left=(-0.5 - 0.6 * kick, 0.3 - 0.9 * kick),
        arm_right=(0.5 - 0.6 * kick, 1.3 - 0.9 * kick),
        leg_left=(-0.1 - 0.1 * kick, -0.14 + 0.1 * kick),
        leg_right=(0.12 + 1.45 * kick, 0.05 + 1.5 * kick - chamber),
        lean=-0.3 * kick,
    )


ACTIONS: dict[str, Callable[[float, Manner], Pose]] = {
    "box": _box,
    "jump": _jump,
    "jumping_jack": _jumping_jack,
    "kick": _kick,
    "squat": _squat,
    "walk": _walk,
    "wave": _wave,
}
