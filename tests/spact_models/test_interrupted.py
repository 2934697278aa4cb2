"""An interrupt carries how to go on, said by the innermost block that knows it."""

import shlex

import pytest

from spact_models.interrupted import as_typed, go_on_with


def test_the_innermost_word_is_the_one_that_is_said():
    with pytest.raises(KeyboardInterrupt) as stop, go_on_with(lambda: "outer"), go_on_with(lambda: "inner"):
        raise KeyboardInterrupt
    assert stop.value.__notes__ == ["inner"]
    with pytest.raises(ValueError, match="no interrupt") as error, go_on_with(lambda: "outer"):
        raise ValueError("no interrupt")
    assert not hasattr(error.value, "__notes__")


def test_a_path_is_told_as_one_would_type_it_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert as_typed(tmp_path / "runs" / "a") == "runs/a"
    assert as_typed(tmp_path.parent / "b") == shlex.quote(str(tmp_path.parent / "b"))
    assert as_typed(tmp_path / "my run") == "'my run'"
