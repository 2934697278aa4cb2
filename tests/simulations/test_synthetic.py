"""The synthetic set: same seed same files, the rules of its manifest, motion and look independent, plain errors."""

import argparse
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, fields, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from client.video.boxes import person_mask, read_boxes
from client.video.decode import decode_video, probe
from client.video.rows import Row, class_names, read_rows
from simulations import synthetic, synthetic_camera
from simulations.synthetic import SynthConfig, film, film_with_boxes, plan_set, planned_rows, synthesize
from simulations.synthetic_camera import MARGIN, shake
from simulations.synthetic_look import MAX_IDENTITIES, VALUES, Look
from simulations.synthetic_motion import ACTIONS, draw_manner, pose_at
from simulations.synthetic_plan import Scene
from simulations.synthetic_scene import BACKGROUNDS
from spact_models.errors import UserError

SMALL = SynthConfig(clips=24, identities=4, sites=2, size_px=48, frames=10)
FULL = SynthConfig(clips=480, identities=12, sites=3)


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    out = tmp_path_factory.mktemp("synth") / "set"
    return read_rows(synthesize(SMALL, out, workers=1, progress=False))


def fingerprints(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def grouped(
    scenes: Iterable[Scene], key: Callable[[Scene], object], value: Callable[[Scene], object]
) -> dict[object, set[object]]:
    groups: dict[object, set[object]] = defaultdict(set)
    for scene in scenes:
        groups[key(scene)].add(value(scene))
    return groups


# --- files ------------------------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(small_set: list[Row], tmp_path: Path) -> None:
    first = fingerprints(small_set[0].path.parents[2])
    synthesize(SMALL, tmp_path / "again", workers=1, progress=False)
    synthesize(replace(SMALL, seed=1), tmp_path / "other", workers=1, progress=False)
    assert fingerprints(tmp_path / "again") == first
    other = fingerprints(tmp_path / "other")
    assert not set(other.values()) & set(first.values())


def test_files_do_not_depend_on_the_number_of_processes(
    small_set: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "POOL_FROM_CLIPS", 1)
    synthesize(SMALL, tmp_path / "pool", workers=2, progress=False)
    assert fingerprints(tmp_path / "pool") == fingerprints(small_set[0].path.parents[2])


def test_every_file_decodes_to_what_was_filmed(small_set: list[Row]) -> None:
    scenes, cast = plan_set(SMALL)
    assert len(small_set) == SMALL.clips
    for row, scene in zip(small_set, scenes, strict=True):
        info = probe(row.path)
        assert (info.frames, info.width, info.height, info.fps) == (SMALL.frames, 48, 48, 12.5)
        filmed_THWC = np.stack(list(film(SMALL, scene, cast[scene.identity])))
        read_THWC = decode_video(row.path, 48)
        assert filmed_THWC.dtype == np.uint8
        assert np.abs(filmed_THWC.astype(float) - read_THWC).mean() < 8.0  # of 255: the codec's loss


def test_manifest_names_what_was_filmed(small_set: list[Row]) -> None:
    scenes, cast = plan_set(SMALL)
    for row, scene in zip(small_set, scenes, strict=True):
        look = asdict(cast[scene.identity])
        assert (row.action, row.split, row.site) == (scene.action, scene.split, f"site_{scene.site + 1}")
        assert row.source == f"{row.site}_{scene.background}"
        names = {"identity": f"person_{scene.identity + 1:02d}", "background": scene.background}
        assert dict(row.attributes) == names | look
        assert row.path.parent.name == row.site
    assert class_names(small_set) == sorted(ACTIONS)
    assert len(ACTIONS) >= 6


@pytest.mark.parametrize("camera", ["jitter", "static"])
def test_the_actor_is_inside_the_box_and_the_box_is_no_larger_than_needed(camera: str) -> None:
    """Filmed on the plain backdrop, without noise, in even light: whatever is not the backdrop's grey is the actor."""
    scenes, cast = plan_set(SMALL)
    config = replace(SMALL, show="person", camera=camera, size_px=96)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_camera, "NOISE", 0.0)
        patch.setattr(synthetic, "LIGHT", 0.0)
        clips = [list(film_with_boxes(config, scene, cast[scene.identity])) for scene in scenes]
    for frame_HWC, box in (pair for clip in clips for pair in clip):
        actor_HW = np.abs(frame_HWC.astype(int) - frame_HWC[0, 0]).max(axis=-1) > 0
        inside_HW = person_mask({0: [box]}, 0, 96)
        assert actor_HW.sum() > 300
        assert not (actor_HW & ~inside_HW).any()
        for axis, low, high in ((0, box.left, box.right), (1, box.top, box.bottom)):
            found = np.flatnonzero(actor_HW.any(axis=axis))
            assert 0 <= found[0] - low * 96 < 4
            assert 0 <= high * 96 - (found[-1] + 1) < 4


def test_each_video_has_its_boxes_and_a_place_alone_has_none(small_set: list[Row], tmp_path: Path) -> None:
    scenes, cast = plan_set(SMALL)
    for row, scene in list(zip(small_set, scenes, strict=True))[:6]:
        assert row.boxes is not None
        assert row.boxes.parts[-3:] == ("boxes", row.site, f"{row.path.stem}.csv")
        filmed = [box for _, box in film_with_boxes(SMALL, scene, cast[scene.identity])]
        alone = [box for _, box in film_with_boxes(replace(SMALL, show="person"), scene, cast[scene.identity])]
        assert filmed == alone  # the place behind does not matter
        read = read_boxes(row.boxes)
        assert list(read) == list(range(SMALL.frames))
        for box, expected in zip(read.values(), filmed, strict=True):
            assert astuple(box[0]) == pytest.approx(astuple(expected), abs=1e-4)
    place = read_rows(synthesize(replace(SMALL, show="background"), tmp_path / "place", workers=1, progress=False))
    assert {row.boxes for row in place} == {None}
    assert not list((tmp_path / "place").rglob("*.csv"))[1:]  # the manifest alone


def test_the_parts_are_shown_alone() -> None:
    scenes, cast = plan_set(SMALL)
    scene, look, stranger = scenes[0], cast[scenes[0].identity], cast[(scenes[0].identity + 1) % 4]
    place = next(film(replace(SMALL, show="background"), scene, look))
    assert np.array_equal(place, next(film(replace(SMALL, show="background"), scene, stranger)))
    person = next(film(replace(SMALL, show="person"), scene, look))
    elsewhere = replace(scene, background=next(name for name in BACKGROUNDS if name != scene.background))
    assert np.array_equal(person, next(film(replace(SMALL, show="person"), elsewhere, look)))
    whole = next(film(SMALL, scene, look)).astype(int)
    of_place, of_person = (np.abs(whole - part).max(axis=-1) == 0 for part in (place, person))
    assert (of_place | of_person).mean() > 0.85  # the rest: the actor's outline and shadow
    assert of_place.mean() > 0.5
    assert of_person.mean() > 0.05


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        FULL,
        replace(FULL, seed=7),
        SMALL,
        SynthConfig(clips=24, identities=2, sites=2),
        SynthConfig(clips=256, identities=MAX_IDENTITIES, sites=3),
        SynthConfig(clips=200, identities=12, sites=20),
        SynthConfig(clips=240, identities=12, sites=4, alpha=0.3),
    ],
)
def test_rules_of_the_table(config: SynthConfig) -> None:
    scenes, cast = plan_set(config)
    train = [scene for scene in scenes if scene.split == "train"]
    test = [scene for scene in scenes if scene.split == "test"]
    assert len(train) + len(test) == config.clips
    assert 0.15 <= len(test) / config.clips <= 0.26
    assert not {(s.identity, s.background) for s in train} & {(s.identity, s.background) for s in test}
    assert {s.action for s in train} == set(ACTIONS)
    assert {s.background for s in train} == set(BACKGROUNDS)
    places = grouped(train, lambda s: s.identity, lambda s: s.background)
    sites = grouped(train, lambda s: s.identity, lambda s: s.site)
    moves = grouped(train, lambda s: s.site, lambda s: s.action)
    assert set(places) == {s.identity for s in test} == set(range(config.identities))
    assert min(len(found) for found in places.values()) >= 2
    assert min(len(found) for found in sites.values()) >= 2
    assert set(moves) == {s.site for s in test} == set(range(config.sites))
    assert min(len(found) for found in moves.values()) >= 3
    assert len(set(cast)) == config.identities


@pytest.mark.parametrize("share", [0.22, 0.61])
def test_the_share_of_test_videos_is_each_persons(share: float) -> None:
    scenes, _ = plan_set(SynthConfig(clips=480, identities=12, sites=3, test_share=share))
    for person in range(12):
        splits = [scene.split for scene in scenes if scene.identity == person]
        assert splits.count("test") == round(share * len(splits))


def test_sites_differ_in_actions_and_people_and_alpha_governs_how_much() -> None:
    def spread(alpha: float, key: Callable[[Scene], object]) -> float:
        """Mean total variation between two sites' mixes."""
        scenes, _ = plan_set(replace(FULL, clips=960, alpha=alpha))
        counts = [Counter(key(scene) for scene in scenes if scene.site == site) for site in range(3)]
        mixes = [{name: count / sum(c.values()) for name, count in c.items()} for c in counts]
        gaps = [
            0.5 * sum(abs(one.get(k, 0) - two.get(k, 0)) for k in set(one) | set(two))
            for one, two in combinations(mixes, 2)
        ]
        return float(np.mean(gaps))

    for key in (lambda scene: scene.action, lambda scene: scene.identity):
        even, default, steep = spread(1000.0, key), spread(1.0, key), spread(0.3, key)
        assert even < 0.15 < 0.2 < default
        assert default < steep


def test_the_cast_wears_every_value_equally_often() -> None:
    _, cast = plan_set(FULL)
    for field in fields(Look):
        worn = Counter(getattr(look, field.name) for look in cast)
        assert set(worn) == set(VALUES[field.name])
        assert max(worn.values()) - min(worn.values()) <= 1


# --- motion = action, look = private attribute -----------------------------------------------------------------------


def test_actions_are_dealt_evenly_to_every_person() -> None:
    scenes, _ = plan_set(FULL)
    for split, most in (("train", 1), ("test", 1)):
        for identity in range(FULL.identities):
            dealt = Counter(s.action for s in scenes if s.identity == identity and s.split == split)
            counts = [dealt[action] for action in ACTIONS]
            assert max(counts) - min(counts) <= most


def test_motion_place_and_light_do_not_depend_on_who_acts() -> None:
    """Two people with one silhouette differ nowhere but inside it, in no frame."""
    scenes, cast = plan_set(SMALL)
    scene = scenes[0]
    other_colour = "blue" if cast[0].clothes_color != "blue" else "red"
    first = np.stack(list(film(SMALL, scene, cast[0]))).astype(int)
    second = np.stack(list(film(SMALL, scene, replace(cast[0], clothes_color=other_colour)))).astype(int)
    place = np.stack(list(film(replace(SMALL, show="background"), scene, cast[0]))).astype(int)
    changed = np.abs(first - second).max(axis=-1) > 0
    figure = np.abs(first - place).max(axis=-1) > 0
    assert changed.mean() > 0.01
    assert not (changed & ~figure & (np.abs(second - place).max(axis=-1) == 0)).any()


def test_manner_is_drawn_alike_for_every_action() -> None:
    """One random stream gives every action the same phase, tempo, size of movement and side."""
    manners = [replace(draw_manner(action, np.random.default_rng(5)), speed=0.0) for action in ACTIONS]
    assert len(set(manners)) == 1


def test_a_clip_of_eight_frames_at_stride_two_spans_about_one_cycle() -> None:
    seconds = 8 * 2 / SynthConfig().fps
    cycles = [draw_manner("walk", np.random.default_rng(k)).cycles_a_second * seconds for k in range(50)]
    assert 0.8 < min(cycles) < max(cycles) < 1.25


@pytest.mark.parametrize(("one", "two"), list(combinations(ACTIONS, 2)))
def test_two_actions_are_never_the_same_motion(one: str, two: str) -> None:
    """However they are shifted in time, some limb is far from where the other action would have it."""

    def course(action: str, shift: float) -> np.ndarray:
        manner = replace(draw_manner("walk", np.random.default_rng(3)), phase=shift, cycles_a_second=1.0)
        poses = [pose_at(action, manner, seconds) for seconds in np.linspace(0, 1, 24, endpoint=False)]
        return np.array([[*p.arm_left, *p.arm_right, *p.leg_left, *p.leg_right] for p in poses])

    nearest = min(np.abs(course(one, 0.0) - course(two, shift)).max() for shift in np.linspace(0, 1, 24))
    assert nearest > 0.4  # radians


# --- the camera -------------------------------------------------------------------------------------------------------


def test_the_camera_shakes_by_about_a_pixel_unless_it_stands() -> None:
    shakes = [shake(np.arange(24) / 12.5, np.random.default_rng(k)) * 48 for k in range(100)]
    assert 0.35 < np.std(np.concatenate(shakes)) < 0.9
    assert max(np.abs(one).max() for one in shakes) <= MARGIN * 48
    scene = replace(plan_set(SMALL)[0][0], background="bricks")  # nothing moves there
    look = plan_set(SMALL)[1][0]

    def unrest(camera: str) -> float:
        """Mean change from frame to frame, the light's share taken out."""
        config = replace(SMALL, camera=camera, show="background")
        clip = np.stack([frame / frame.mean() for frame in film(config, scene, look)])
        return float(np.abs(np.diff(clip, axis=0)).mean())

    assert unrest("jitter") > 1.3 * unrest("static")


def test_the_light_changes_by_up_to_seven_percent() -> None:
    scenes, cast = plan_set(SMALL)
    config = replace(SMALL, camera="static", show="background")
    for background in ("bricks", "tiles"):
        clip = np.stack(list(film(config, replace(scenes[0], background=background), cast[0])))
        level = clip.mean(axis=(1, 2, 3))
        assert 0.03 < level.max() / level.min() - 1 < 0.16


# --- a user's mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"identities": 1}, "--identities = 1"),
        ({"identities": MAX_IDENTITIES + 1}, "--identities = 65"),
        ({"sites": 1}, "--sites = 1"),
        ({"clips": 23}, "--clips = 23"),
        ({"clips": 40, "identities": 12}, "must lie between 48"),
        ({"seed": -1}, "--seed = -1"),
        ({"size_px": 8}, "--size = 8"),
        ({"frames": 1}, "--frames = 1"),
        ({"fps": 0.0}, "--fps = 0.0"),
        ({"fps": float("nan")}, "--fps = nan"),
        ({"alpha": 0.0}, "--alpha = 0.0"),
        ({"test_share": 1.0}, "--test-share = 1.0"),
        ({"camera": "handheld"}, "--camera = 'handheld', must be one of jitter, static"),
        ({"show": "half"}, "--show = 'half'"),
    ],
)
def test_settings_that_cannot_be_filmed_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        replace(SMALL, **change)


def test_too_uneven_sites_are_refused_with_a_remedy() -> None:
    with pytest.raises(UserError, match=r"more clips, fewer sites, or a larger alpha"):
        plan_set(SynthConfig(clips=200, identities=2, sites=20, alpha=0.05))


def test_a_folder_in_use_is_kept_and_force_replaces_only_the_set(tmp_path: Path) -> None:
    out = tmp_path / "set"
    (out / "videos" / "site_1").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    (out / "videos" / "holiday.mp4").write_text("mine")
    (out / "videos" / "site_1" / "clip_99999.mp4").write_text("an earlier, longer set")
    (out / "boxes" / "site_1").mkdir(parents=True)
    (out / "boxes" / "site_1" / "clip_99999.csv").write_text("an earlier, longer set")
    before = fingerprints(out)
    with pytest.raises(UserError, match=r"--out = .*set, holds files already.*--force"):
        synthesize(SMALL, out, progress=False)
    assert fingerprints(out) == before
    rows = read_rows(synthesize(SMALL, out, force=True, workers=1, progress=False))
    ours = {path.relative_to(out).as_posix() for row in rows for path in (row.path, row.boxes)}
    assert set(fingerprints(out)) - ours == {
        "manifest.csv",
        "notes.txt",
        "synthetic.json",
        "videos/holiday.mp4",
    }


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"--out = .*file.*choose another folder"):
            synthesize(SMALL, out, progress=False)


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic.os, "access", lambda *_: False)  # the administrator may write everywhere
    with pytest.raises(UserError, match="Permission denied"):
        synthesize(SMALL, tmp_path / "set", progress=False)


def test_the_verb_films_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    synthetic.add_arguments(parser)
    assert parser.parse_args(["--out", "x"]).clips == SynthConfig().clips
    out = tmp_path / "set"
    flags = f"--out {out} --clips 24 --identities 3 --sites 2 --seed 4 --size 33 --frames 8 --camera static --workers 1"
    assert synthetic.run(parser.parse_args(flags.split())) == 0
    assert str(out / "manifest.csv") in capsys.readouterr().out
    rows = read_rows(out / "manifest.csv")
    assert len(rows) == 24
    assert len({row.attributes["identity"] for row in rows}) == 3


def test_the_planned_rows_are_those_of_the_manifest(tmp_path):
    config = SynthConfig(clips=24, identities=4, sites=2, frames=8, size_px=32)
    made = read_rows(synthesize(config, tmp_path / "set", workers=1, progress=False))
    planned = planned_rows(config, tmp_path / "set")
    assert sorted(planned, key=lambda row: row.path) == sorted(made, key=lambda row: row.path)
