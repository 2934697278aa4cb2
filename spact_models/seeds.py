"""Seeds and devices: where a run's randomness and its hardware come from, in one place each.

Training is seeded by (seed, round, site), so that a round can be played again. Noise for differential privacy,
Poisson sampling and masks must never come from here: the server knows the seed.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor

from spact_models.errors import UserError

_GLOBAL = threading.RLock()  # torch's global generator: there is one of it, and threads train and judge side by side
_noise: ContextVar[torch.Generator | np.random.Generator | None] = ContextVar("noise", default=None)


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on nothing else (not on ``PYTHONHASHSEED``)."""
    digest = hashlib.sha256("\x1f".join(f"{type(part).__name__}:{part}" for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Draw torch's global randomness (network initialisation) from these parts, and leave it as it was.

    One thread at a time.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with _GLOBAL, torch.random.fork_rng(gpus):
        torch.manual_seed(seed_for(*parts))
        yield


@contextmanager
def own_noise(device: torch.device) -> Iterator[None]:
    """An anonymizer's output noise comes from a generator of this context alone, not from torch's global one.

    So that sites which train side by side in one process draw what each would draw alone.
    """
    with _noise_from(torch.Generator(device)):
        yield


@contextmanager
def _noise_from(generator: torch.Generator | np.random.Generator) -> Iterator[None]:
    token = _noise.set(generator)
    try:
        yield
    finally:
        _noise.reset(token)


@contextmanager
def unknown_noise(device: torch.device) -> Iterator[None]:
    """As :func:`own_noise`, from the operating system's randomness: nobody can draw it again.

    On a CPU from NumPy's generator with 128 bits of it. torch's there keeps 32 bits of any seed, few enough to try them
    all; on a GPU it keeps 53.
    """
    if device.type == "cpu":
        with _noise_from(np.random.default_rng()):
            yield
        return
    generator = torch.Generator(device)
    generator.seed()
    with _noise_from(generator):
        yield


def seed_noise(*parts: int | str) -> None:
    """Let the output noise from here on depend on these parts and on nothing else."""
    generator = _noise.get()
    if isinstance(generator, np.random.Generator):
        raise RuntimeError("noise that nobody may draw again takes no seed")
    (generator or torch).manual_seed(seed_for(*parts))


def noise_like(value: Tensor) -> Tensor:
    """Standard normal noise of the value's shape, type and device, from :func:`own_noise` where there is one.

    Drawn in plain memory whatever the value's layout is: what is drawn does not depend on it, and torch is eight times
    slower where memory is not contiguous (16 clips of 8×32×32 on one core: 16 and 2 ms).
    """
    generator = _noise.get()
    if isinstance(generator, np.random.Generator):
        return torch.from_numpy(generator.standard_normal(value.shape, dtype=np.float32)).to(value.device, value.dtype)
    return torch.randn(value.shape, generator=generator, dtype=value.dtype, device=value.device)


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
