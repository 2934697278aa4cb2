"""A guess at what was meant is made where it is near, and nowhere else."""

import pytest

from spact_models.nearest import known_names, known_settings, nearest
from spact_models.run_config import default_config


def test_what_is_not_near_is_not_guessed():
    verbs = ("demo", "server", "simulate")
    assert nearest("simulte", verbs) == "simulate"
    assert nearest("foo", verbs) == ""
    assert known_names("simulte", verbs) == "The nearest known one is 'simulate'."
    assert known_names("foo", verbs) == "Known are: demo, server, simulate."


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("game.omegga", "The nearest known one is 'game.omega'."),
        ("omega", "The nearest known one is 'game.omega'."),
        ("round.minimax", "The nearest known one is 'rounds.minimax'."),
        ("speed.minimax", "The nearest known one is 'rounds.minimax'."),
        ("foo", "`fedspact check` shows them all."),
    ],
)
def test_of_a_setting_the_half_after_the_point_decides(key, said):
    assert known_settings(key, default_config()) == said


def test_a_key_that_is_near_to_none_of_its_section_is_told_the_section():
    said = known_settings("rounds.count", default_config())
    assert said.startswith("In rounds there are: ")
    assert "minimax" in said
    assert "nearest" not in said
