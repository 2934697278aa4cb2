"""Gaussian noise and coin tosses of differential privacy: from the operating system, never from the run's seed.

The server knows the seed and could subtract noise that follows from it. Here a key of 32 random bytes opens a
ChaCha20 keystream, which is as unpredictable as the key and fast enough for a model of noise a step.

Two weaknesses of floating point are taken care of (Mironov 2012, "On Significance of the Least Significant Bits for
Differential Privacy"):

- the low bits of ``value + noise`` tell which ``value`` it was. Value and noise are therefore both rounded to one grid
  whose step depends on the noise's size alone; their sum is exact in float64 and is the rounding of an ideal noisy
  value, which is post-processing. Which sums can occur does not depend on the value.
- uniform numbers of 53 bits end a Gaussian's tail at 8.6 standard deviations. The radius takes 64 bits: 9.4, beyond
  which a Gaussian falls with probability 6e-21.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from torch import Tensor

KEY_BYTES = 32
GRID_BITS = 24  # the grid's step is 2^-24 of the noise's size, as fine as float32 itself
PAIRS = 1 << 15  # at once: what a cache holds
WORD = 2.0**-64

# Norms, sums and the wire's float16 round, so that a difference that is bounded by C on paper may be C (1 + 2^-11) in
# the machine. The noise is larger by more than that.
ROUNDING_HEADROOM = 1e-3


class SecretStream:
    """Random numbers that nobody else can draw again.

    Args:
        key: 32 bytes; None: the operating system's. A fixed key is for tests alone.
    """

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes, must be {KEY_BYTES}")
        self._fixed = key
        self._open()

    def _open(self) -> None:
        self._process = os.getpid()
        key = os.urandom(KEY_BYTES) if self._fixed is None else self._fixed
        self._stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """``count`` uniform 64-bit numbers."""
        if os.getpid() != self._process:  # a fork would draw what its parent draws, and noise would cancel out
            self._open()
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64)

    def normal(self, count: int) -> NDArray[np.float64]:
        """``count`` independent standard Gaussians (Box and Muller 1958)."""
        out = np.empty(count)
        for start in range(0, count, 2 * PAIRS):
            piece = out[start : start + 2 * PAIRS]
            half = (len(piece) + 1) // 2
            radius, angle = self.words(2 * half).astype(np.float64).reshape(2, half)
            radius = np.sqrt(-2.0 * np.log((radius + 1.0) * WORD))  # + 1: the logarithm of 0 never occurs
            angle *= 2.0 * math.pi * WORD
            piece[:half] = radius * np.cos(angle)
            piece[half:] = (radius * np.sin(angle))[: len(piece) - half]
        return out

    def chosen(self, count: int, rate: float) -> NDArray[np.bool_]:
        """Poisson sampling: each of ``count`` is chosen with probability ``rate``, independently of the others."""
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"rate = {rate}, must be from 0 to 1")
        drawn = self.words(count)
        return np.ones(count, bool) if rate == 1.0 else drawn < np.uint64(int(rate * 2.0**64))

    def noised(self, value: Tensor, deviation: float) -> Tensor:
        """``value`` plus Gaussian noise of standard deviation ``deviation`` in every coordinate.

        The same shape, type and device. ``deviation`` 0 gives the value itself (identities in tests). The noise is
        drawn on the CPU, whatever the device.
        """
        if not (math.isfinite(deviation) and deviation >= 0):
            raise ValueError(f"deviation = {deviation}, must be at least 0")
        if deviation == 0:
            return value.clone()
        step = grid_step(deviation)
        exact = value.detach().to("cpu", torch.float64).numpy()
        noise = self.normal(value.numel()).reshape(value.shape) * deviation
        summed = np.rint(exact / step) * step + np.rint(noise / step) * step
        return torch.from_numpy(np.asarray(summed)).to(value.device, value.dtype)


def grid_step(deviation: float) -> float:
    """A power of two, 2^-24 to 2^-25 of the deviation: dividing and multiplying by it is exact."""
    return 2.0 ** (math.floor(math.log2(deviation)) - GRID_BITS)
