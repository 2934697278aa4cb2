"""A small untrained anonymizer in a file, for every test that puts one to work."""

import pytest

from spact_models.checkpoint import save_checkpoint
from spact_models.networks import build_networks, checkpoint_header
from spact_models.run_config import load_settings

SMALL = {"networks.anonymizer": "motion", "networks.anonymizer_channels": 4, "networks.anonymizer_depth": 1,
         "clip.size_px": 16, "clip.frames": 4, "clip.stride_frames": 2}  # fmt: skip
QUIET = {"networks.output_noise": 0.0, "game.beta": 0.0}  # the same frames give the same answer


@pytest.fixture(scope="session")
def write_model():
    """``write_model(path, quiet=…, seed=…)``: an f_A of 16 px that looks two frames back; returns the path."""

    def write(path, quiet=True, seed=0):
        settings = load_settings({"preset": "tiny", "seed": seed, **SMALL, **(QUIET if quiet else {})})
        networks = build_networks(settings, ["a", "b"])
        tensors = {f"anonymizer.{name}": value for name, value in networks.anonymizer.state_dict().items()}
        save_checkpoint(path, tensors, checkpoint_header(settings, ["a", "b"]))
        return path

    return write
