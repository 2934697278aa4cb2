"""Labelled actor videos: motion = action, look = private attribute (``fedspact synth``).

A stand-in for footage that may not be shared: articulated figures act in front of textured, moving backgrounds, filmed
by a camera that shakes, under light that changes, with sensor noise, as real H.264 files with a manifest, and for each
a file that says where the actor stands (client/video/boxes.py). ``synthetic.json`` says that they are drawn
(synthetic_mark.py). Because action and look are independent by construction, one can measure what an anonymizer keeps
of one and hides of the other.

One seed gives one set, picture for picture. ``--show person`` and ``--show background`` film the same set with one half
left out: the crops that tell whether an attacker recognises *who* or *where*.
"""

import argparse
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from math import pi
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageChops
from tqdm import tqdm

from client.video.boxes import Box, write_boxes
from client.video.encode import write_video
from client.video.rows import Row, write_rows
from simulations.synthetic_camera import MARGIN, expose, seen_box, shake
from simulations.synthetic_figure import make_puppet
from simulations.synthetic_look import MAX_IDENTITIES, Look, draw_cast
from simulations.synthetic_mark import MARK, sha256, write_mark
from simulations.synthetic_motion import ACTIONS, draw_manner, pose_at
from simulations.synthetic_plan import Scene, draw_plan, least_clips
from simulations.synthetic_scene import BACKGROUNDS, make_backdrop, plain_backdrop
from spact_models.errors import UserError
from spact_models.resident import cores

Floats = NDArray[np.float64]

CAMERAS = ("jitter", "static")
SHOWS = ("all", "person", "background")
MAX_SITES = 50
ENLARGEMENT = 3  # pictures are drawn three times too large and scaled down, which smooths all edges
BODY = (0.60, 0.72)  # an average body's height in the picture
MAX_WAY = 0.6  # body heights: a walker stays in the picture
LIGHT = 0.07  # brightness changes by this share either way
CRF = 20  # H.264 quality: visually clean at these sizes
POOL_FROM_CLIPS = 48  # below this, starting further processes takes longer than the work
CAST_STREAM, PLAN_STREAM, PLACE_STREAM, CLIP_STREAM = range(4)  # separate random streams below one seed


@dataclass(frozen=True)
class SynthConfig:
    """What to film. The defaults suit the demo: minutes of training on two cores."""

    clips: int = 480
    identities: int = 12
    sites: int = 3
    seed: int = 0
    size_px: int = 96  # twice the 48 px that a tiny network sees
    frames: int = 24  # 1.9 s: one and a half cycles of every action
    fps: float = 12.5  # 8 frames at stride 2 span about one cycle
    camera: str = "jitter"
    alpha: float = 1.0  # of the sites' Dirichlet mix; smaller = sites differ more
    show: str = "all"
    test_share: float = 0.22  # of each person's clips; a comparison wants many test clips, a demo many to learn from

    def __post_init__(self) -> None:
        _check("identities", self.identities, 2, MAX_IDENTITIES, "more would look alike")
        _check("sites", self.sites, 2, MAX_SITES, "each identity is filmed at two sites or more")
        least = least_clips(self.identities, self.sites)
        _check("clips", self.clips, least, 1_000_000, f"{self.identities} identities at {self.sites} sites need them")
        _check("seed", self.seed, 0, 2**63 - 1, "any whole number from 0")
        _check("size", self.size_px, 32, 1024, "pixels")
        _check("frames", self.frames, 8, 10_000, "8 frames at stride 2 show a cycle of the action")
        _check("fps", self.fps, 5.0, 120.0, "frames a second; slower would miss the motion")
        _check("alpha", self.alpha, 0.05, 1000.0, "0.1 = sites differ strongly, 100 = hardly")
        _check("test-share", self.test_share, 0.05, 0.95, "the rest is training")
        for name, value, known in (("camera", self.camera, CAMERAS), ("show", self.show, SHOWS)):
            if value not in known:
                raise UserError(f"--{name} = {value!r}, must be one of {', '.join(known)}")


def synthesize(config: SynthConfig, out: Path, force: bool = False, workers: int = 0, progress: bool = True) -> Path:
    """Film the set into ``out`` and return its manifest, which is written last: a set with a manifest is complete.

    ``workers`` processes (0 = one a core) share the work; the files do not depend on their number.
    Raises UserError when ``out`` holds anything (``force`` replaces an earlier set in it) or cannot be written.
    """
    out = Path(out).resolve()
    if workers < 0:
        raise UserError(f"--workers = {workers}, must be at least 0 (0 = one a core)")
    scenes, cast = plan_set(config)
    manifest = out / "manifest.csv"
    _clear_folder(out, manifest, force)
    rows = [_row(config, scene, cast[scene.identity], out) for scene in scenes]
    _make_folders(out, {path.parent for row in rows for path in (row.path, row.boxes) if path})
    orders = [(config, scene, cast[scene.identity], row) for scene, row in zip(scenes, rows, strict=True)]
    bar = tqdm(
        _film_all(orders, workers), total=len(orders), desc="synth", unit="clip", disable=None if progress else True
    )
    write_mark(out, {row.path: digest for row, digest in zip(rows, bar, strict=True)})
    write_rows(rows, manifest)
    return manifest


def plan_set(config: SynthConfig) -> tuple[list[Scene], list[Look]]:
    """The scenes to film, by number, and the people in them, by identity."""
    cast = draw_cast(config.identities, np.random.default_rng([config.seed, CAST_STREAM]))
    rng = np.random.default_rng([config.seed, PLAN_STREAM])
    scenes = draw_plan(
        config.clips,
        config.identities,
        config.sites,
        config.alpha,
        list(ACTIONS),
        list(BACKGROUNDS),
        config.test_share,
        rng,
    )
    return scenes, cast


def planned_rows(config: SynthConfig, out: Path) -> list[Row]:
    """The manifest that :func:`synthesize` would write, before anything is filmed."""
    scenes, cast = plan_set(config)
    return [_row(config, scene, cast[scene.identity], out) for scene in scenes]


def film(config: SynthConfig, scene: Scene, look: Look) -> Iterator[NDArray[np.uint8]]:
    """The frames of one clip, uint8 (size, size, 3) RGB, as the camera gives them to the encoder."""
    for frame_HWC, _ in film_with_boxes(config, scene, look):
        yield frame_HWC


def film_with_boxes(config: SynthConfig, scene: Scene, look: Look) -> Iterator[tuple[NDArray[np.uint8], Box | None]]:
    """The frames of one clip, each with the box of the actor and the actor's shadow in it; None: nobody in it."""
    side = config.size_px * ENLARGEMENT
    margin = int(np.ceil(side * MARGIN))
    place = list(BACKGROUNDS).index(scene.background)
    place_rng = np.random.default_rng([config.seed, PLACE_STREAM, place, scene.site])
    rng = np.random.default_rng([config.seed, CLIP_STREAM, scene.number])
    backdrop = make_backdrop(scene.background, side + 2 * margin, place_rng)
    if config.show == "person":
        backdrop = plain_backdrop(side + 2 * margin)

    manner = draw_manner(scene.action, rng)
    puppet = make_puppet(look, side * rng.uniform(*BODY), manner.mirrored)
    seconds_T = np.arange(config.frames) / config.fps
    x_T = margin + side * rng.uniform(0.40, 0.60) + _travel(manner.speed, manner.mirrored, seconds_T) * puppet.height_px
    ground_y = margin + side * rng.uniform(0.90, 0.96)
    background_start = rng.uniform(0.0, 60.0)  # seconds: what moves there did not wait for the actor
    shake_T2 = shake(seconds_T, rng) * (side if config.camera == "jitter" else 0.0)
    light_T = 1.0 + LIGHT * np.sin(2 * pi * (rng.uniform() + rng.uniform(0.2, 0.9) * seconds_T))
    for seconds, x, shake_2, light in zip(seconds_T.tolist(), x_T.tolist(), shake_T2, light_T, strict=True):
        canvas = backdrop.at(background_start + seconds)
        empty = canvas.copy()
        if config.show != "background":
            puppet.draw(canvas, pose_at(scene.action, manner, seconds), x, ground_y)
        box = seen_box(ImageChops.difference(empty, canvas), margin, shake_2)
        yield expose(canvas, config.size_px, margin, shake_2, light, rng), box


def _travel(speed: float, mirrored: bool, seconds_T: Floats) -> Floats:
    """The way walked, in body heights, half of it before the middle of the clip; a long clip has slow walkers."""
    way_T: Floats = min(speed, MAX_WAY / seconds_T[-1]) * (seconds_T - seconds_T.mean())
    return -way_T if mirrored else way_T


def _film_all(orders: list[tuple[SynthConfig, Scene, Look, Row]], workers: int) -> Iterator[str]:
    workers = workers or cores()
    if workers == 1 or len(orders) < POOL_FROM_CLIPS:
        yield from map(_film_to_file, orders)
        return
    # Spawned, not forked: a fork copies the threads' locks of a parent that may have torch loaded.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_film_to_file, orders, chunksize=4)


def _film_to_file(order: tuple[SynthConfig, Scene, Look, Row]) -> str:
    """Returns the video's SHA-256."""
    config, scene, look, row = order
    boxes: dict[int, list[Box]] = {}

    def frames() -> Iterator[NDArray[np.uint8]]:
        for number, (frame_HWC, box) in enumerate(film_with_boxes(config, scene, look)):
            boxes[number] = [box] if box else []
            yield frame_HWC

    write_video(row.path, frames(), config.fps, CRF)
    if row.boxes:
        write_boxes(row.boxes, boxes)
    return sha256(row.path)


def _row(config: SynthConfig, scene: Scene, look: Look, out: Path) -> Row:
    site = f"site_{scene.site + 1}"
    identity = f"person_{scene.identity + 1:02d}"
    name = f"clip_{scene.number:05d}"
    return Row(
        path=out / "videos" / site / f"{name}.mp4",
        action=scene.action,
        site=site,
        split=scene.split,
        source=f"{site}_{scene.background}",
        attributes={"identity": identity, "background": scene.background, **asdict(look)},
        boxes=None if config.show == "background" else out / "boxes" / site / f"{name}.csv",
    )


def _clear_folder(out: Path, manifest: Path, force: bool) -> None:
    """Removes an earlier set, and nothing else, when asked to; refuses a folder in use otherwise."""
    try:
        if not out.exists() or not any(out.iterdir()):
            return
        if not force:
            raise UserError(
                f"--out = {out}, holds files already; choose a new folder, or --force to replace an earlier set"
            )
        for name in (manifest, out / MARK):
            name.unlink(missing_ok=True)
        for pattern in ("videos/site_*/clip_*.mp4", "boxes/site_*/clip_*.csv"):
            for file in out.glob(pattern):
                file.unlink()
    except OSError as error:
        raise UserError(f"--out = {out}, cannot be used ({error.strerror}); choose another folder") from error


def _make_folders(out: Path, folders: set[Path]) -> None:
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise UserError(f"--out = {out}, cannot be written ({error.strerror}); choose another folder") from error


def _check(name: str, value: float, least: float, most: float, reason: str) -> None:
    if not least <= value <= most:
        raise UserError(f"--{name} = {value}, must lie between {least} and {most} ({reason})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb ``fedspact synth``."""
    default = SynthConfig()
    parser.add_argument("--out", type=Path, required=True, help="folder for videos/, boxes/ and manifest.csv")
    parser.add_argument("--clips", type=int, default=default.clips, help="number of videos (%(default)s)")
    parser.add_argument("--identities", type=int, default=default.identities, help="number of actors (%(default)s)")
    parser.add_argument("--sites", type=int, default=default.sites, help="number of sites (%(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, help="same seed, same videos (%(default)s)")
    parser.add_argument("--size", type=int, default=default.size_px, help="side of the picture, pixels (%(default)s)")
    parser.add_argument("--frames", type=int, default=default.frames, help="frames a video (%(default)s)")
    parser.add_argument("--fps", type=float, default=default.fps, help="frames a second (%(default)s)")
    parser.add_argument("--camera", choices=CAMERAS, default=default.camera, help="does it shake? (%(default)s)")
    parser.add_argument("--alpha", type=float, default=default.alpha, help="likeness of the sites' mix (%(default)s)")
    parser.add_argument("--show", choices=SHOWS, default=default.show, help="leave out the place or the person")
    parser.add_argument("--test-share", type=float, default=default.test_share, help="held-out videos (%(default)s)")
    parser.add_argument("--force", action="store_true", help="replace an earlier set in --out")
    parser.add_argument("--workers", type=int, default=0, help="processes (0 = one a core)")


def run(args: argparse.Namespace) -> int:
    """Films the set and prints where its manifest lies."""
    config = SynthConfig(
        clips=args.clips,
        identities=args.identities,
        sites=args.sites,
        seed=args.seed,
        size_px=args.size,
        frames=args.frames,
        fps=args.fps,
        camera=args.camera,
        alpha=args.alpha,
        show=args.show,
        test_share=args.test_share,
    )
    manifest = synthesize(config, args.out, force=args.force, workers=args.workers)
    print(f"{config.clips} videos of {config.identities} people at {config.sites} sites: {manifest}")
    return 0
