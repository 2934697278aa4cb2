import pytest
import safetensors.torch
import torch

from spact_models.checkpoint import load_checkpoint, save_checkpoint
from spact_models.errors import UserError


def test_round_trip(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b.c": torch.arange(4)}
    save_checkpoint(tmp_path / "x.safetensors", tensors, {"classes": ["fall", "wave"], "round": 3})
    checkpoint = load_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.header["classes"] == ["fall", "wave"]
    assert checkpoint.header["round"] == 3
    for name, value in tensors.items():
        torch.testing.assert_close(checkpoint.tensors[name], value)


def test_what_is_no_checkpoint_is_a_users_mistake(tmp_path):
    missing, text, foreign, newer = (tmp_path / name for name in ("missing", "text", "foreign", "newer"))
    text.write_text("hello")
    safetensors.torch.save_file({"a": torch.zeros(1)}, foreign)
    save_checkpoint(newer, {"a": torch.zeros(1)}, {"format_version": 99})
    for path, words in (
        (missing, "not a checkpoint"),
        (text, "not a checkpoint"),
        (foreign, "header"),
        (newer, "format 99, this fedspact reads 1; upgrade fedspact"),
    ):
        with pytest.raises(UserError, match=rf"{path}: .*{words}"):
            load_checkpoint(path)


@pytest.mark.parametrize("version", [0, -1, 1.5, True, "1", None])
def test_a_format_that_never_was_is_refused(tmp_path, version):
    path = tmp_path / "odd.safetensors"
    save_checkpoint(path, {"a": torch.zeros(1)}, {"format_version": version})
    with pytest.raises(UserError, match=rf"{path}: format_version = {version!r}, must be .* from 1; name a run folder"):
        load_checkpoint(path)


@pytest.mark.parametrize("header", ["[]", "3", "{}", "{"])
def test_a_header_of_another_form_is_refused(tmp_path, header):
    path = tmp_path / "odd.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata={"fedspact": header})
    with pytest.raises(UserError, match=rf"{path}: .*not a checkpoint .*; name a run folder"):
        load_checkpoint(path)
