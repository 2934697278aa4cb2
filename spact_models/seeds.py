"""Seeds and devices: where a run's randomness and its hardware come from, in one place each.

Training is seeded by (seed, round, site), so that a round can be played again. Noise for differential privacy,
Poisson sampling and masks must never come from here: the server knows the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spact_models.errors import UserError


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on nothing else (not on ``PYTHONHASHSEED``)."""
    digest = hashlib.sha256("\x1f".join(f"{type(part).__name__}:{part}" for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Draw torch's global randomness (network initialisation) from these parts, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(*parts))
        yield


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one.

    Raises:
        UserError: CUDA is asked for and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            seen = f"torch {torch.__version__} sees no CUDA GPU"
            raise UserError(f"device = {name!r}, but {seen}; use device = 'auto' or 'cpu'.")
        index = torch.device(name).index or 0
        if index >= torch.cuda.device_count():
            raise UserError(f"device = {name!r}, but there are {torch.cuda.device_count()} GPUs, numbered from 0.")
    return torch.device(name)
