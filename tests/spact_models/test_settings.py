import math
import tomllib
from pathlib import Path

import pytest

from spact_models.errors import UserError
from spact_models.presets import BEFORE, PRESETS
from spact_models.run_config import default_config, load_settings, parse_assignment, read_config_file

PROJECT = Path(__file__).parents[2]


def flattened(tree, prefix=""):
    out = {}
    for name, value in tree.items():
        out.update(flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return out


def test_pyproject_holds_every_key_with_its_default():
    config = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert flattened(config) == default_config()


def test_flower_toml_is_accepted():
    overrides = read_config_file(PROJECT / "flower.toml")
    assert overrides.keys() <= default_config().keys()
    load_settings(overrides)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_decides_all_that_is_left_to_it(preset):
    settings = load_settings({"preset": preset})
    assert "preset" not in [value for key, value in settings.flat().items() if key != "preset"]
    assert load_settings(settings.flat()) == settings


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_decide_exactly_the_keys_that_are_left_to_them(preset):
    assert set(PRESETS[preset]) == {key for key, value in default_config().items() if value == "preset"}


def test_what_came_later_is_a_key_of_today():
    assert BEFORE.keys() <= load_settings({}).flat().keys()


def test_unknown_key_names_the_nearest():
    with pytest.raises(UserError, match=r"game\.omegga.*'game\.omega'"):
        load_settings({"game.omegga": 1.0})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("clip.stride_frames", 0, r"clip\.stride_frames = 0, must be at least 1 \(1 = every frame\)"),
        ("clip.frames", "many", r"clip\.frames = 'many', must be a whole number"),
        ("clip.frames", True, r"clip\.frames = True, must be a whole number"),
        ("clip.frames", 2.5, r"clip\.frames = 2\.5, must be a whole number"),
        ("game.omega", float("nan"), r"game\.omega = nan"),
        ("game.lr_action", -1.0, r"game\.lr_action = -1\.0, must be above 0"),
        ("game.price_of", "picture", r"game\.price_of = 'picture', must be one of: shown, drawn"),
        ("game.critic_steps", 0, r"game\.critic_steps = 0, must be at least 1; 0 only with joint_step = true"),
        ("augment.crop_min_share", 0.0, r"augment\.crop_min_share = 0\.0, must be above 0 and at most 1"),
        ("networks.norm", "layer", r"networks\.norm = 'layer', must be one of: group, batch"),
        ("device", "gpu", r"device = 'gpu', must be auto, cpu, cuda or cuda:N"),
        ("preset", "huge", r"preset = 'huge', must be one of: tiny, small, paper"),
        ("seed", -1, r"seed = -1"),
        ("action.classes", "fall,fall", r"action\.classes = 'fall,fall', names an action twice"),
        ("game.omega", "preset", r"game\.omega = 'preset', but no preset decides it"),
        ("simulation.unlabelled_sites", 3, r"must be below simulation\.sites = 3"),
        ("views.source", "image", r"networks\.anonymizer = 'motion'"),
    ],
)
def test_a_bad_value_names_key_value_and_rule(key, value, words):
    with pytest.raises(UserError, match=words):
        load_settings({key: value})


def test_overrides_win_over_the_preset():
    settings = load_settings({"preset": "paper", "clip.frames": 8, "game.omega": 2})
    assert (settings.clip.frames, settings.clip.size_px, settings.game.omega) == (8, 112, 2.0)


def test_config_file_may_nest_or_dot(tmp_path):
    (tmp_path / "a.toml").write_text('preset = "small"\n"game.omega" = 0.5\n[clip]\nframes = 4\n')
    assert read_config_file(tmp_path / "a.toml") == {"preset": "small", "game.omega": 0.5, "clip.frames": 4}


@pytest.mark.parametrize(
    ("text", "words"), [("x = [1]", "must be a single"), ("x = ", "not valid TOML"), (None, "No such file")]
)
def test_config_file_mistakes(tmp_path, text, words):
    if text is not None:
        (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UserError, match=words):
        read_config_file(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("game.omega=0.5", ("game.omega", 0.5)),
        ("seed=7", ("seed", 7)),
        ("augment.enabled=false", ("augment.enabled", False)),
        ("preset=paper", ("preset", "paper")),
        ("action.classes=fall,wave", ("action.classes", "fall,wave")),
        ('run_dir="a=b"', ("run_dir", "a=b")),
    ],
)
def test_assignments(text, pair):
    assert parse_assignment(text) == pair


@pytest.mark.parametrize("text", ["seed", "=3", "seed=[1]"])
def test_assignment_mistakes(text):
    with pytest.raises(UserError, match="--set"):
        parse_assignment(text)


def test_phase_follows_the_schedule():
    settings = load_settings({"rounds.warmup": 2, "rounds.minimax": 3})
    assert [settings.phase(number) for number in range(1, 6)] == ["warmup"] * 2 + ["minimax"] * 3
    assert settings.total_rounds == 5


def test_the_price_rises_and_the_steps_fall_in_their_shares_of_the_game():
    told = {"rounds.warmup": 2, "rounds.minimax": 10, "game.beta": 2.0, "game.beta_rise": 0.4, "game.lr_fall": 0.3,
            "game.lr_anonymizer": 1.0, "game.lr_action": 2.0, "game.lr_privacy": 3.0}  # fmt: skip
    settings = load_settings(told)
    played = [settings.in_round(number) for number in range(1, 13)]
    assert played[:2] == [settings] * 2  # warm-up has its own steps
    games = [one.game for one in played[2:]]
    assert [game.beta for game in games] == pytest.approx([0.5, 1.0, 1.5] + [2.0] * 7)
    pace = [1.0] * 7 + [(1 + math.cos(math.pi * share)) / 2 for share in (0.25, 0.5, 0.75)]
    for name, rate in (("lr_anonymizer", 1.0), ("lr_action", 2.0), ("lr_privacy", 3.0)):
        assert [getattr(game, name) for game in games] == pytest.approx([rate * one for one in pace])


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_off_nothing_changes_and_whatever_the_share_no_step_is_nought(rounds):
    plain = load_settings({"rounds.warmup": 0, "rounds.minimax": rounds, "game.beta_rise": 0.0, "game.lr_fall": 0.0})
    assert all(plain.in_round(number) == plain for number in range(1, rounds + 1))
    whole = load_settings({**plain.flat(), "game.beta_rise": 1.0, "game.lr_fall": 1.0})
    games = [whole.in_round(number).game for number in range(1, rounds + 1)]
    assert games[-1].beta == plain.game.beta
    assert all(game.lr_action > 0 and game.beta > 0 for game in games)


def test_the_wire_is_float16_and_whole_unless_told_otherwise():
    assert load_settings({}).wire.dtype == "float16"
    assert load_settings({}).wire.patterns == ()
    assert load_settings({"wire.parameters": " a.* ,, b "}).wire.patterns == ("a.*", "b")
