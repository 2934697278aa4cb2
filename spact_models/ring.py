"""The ring of secure aggregation: fixed-point numbers of 32 bits, and the streams that mask them. Both halves use it.

An update is multiplied by ``1 / step`` and rounded to whole numbers, at random and without bias; the numbers are added
modulo 2^32, in which masks cancel out exactly. The sum of ``members`` updates whose values are bounded by ``bound``
takes half of the ring; a sum in the other half shows that somebody sent what no update can be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from numpy.typing import NDArray
from torch import Tensor

from spact_models.noise import SecretStream

Words = NDArray[np.uint32]
TAUGHT = "taught"  # the vector beside the update's: how many sites taught each branch, as plain numbers
SUM_BITS = 30  # a sum lies within +- 2^30 of the ring's +- 2^31
PIECE = 1 << 18  # numbers masked at once: 1 MiB, which stays in the processor's cache
TRIES = 20  # random roundings before the one that cannot grow


@dataclass(frozen=True)
class FixedPoint:
    """Real numbers within ``bound`` as whole multiples of a step, such that ``members`` of them can be added.

    The step is a power of two, so that multiplying by it is exact: the only error is that of the rounding, less than
    one step a coordinate and member, and 0 on average.
    """

    bound: float
    members: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise ValueError(f"bound = {self.bound}, must be above 0")
        if not 1 <= self.members < 2**24:
            raise ValueError(f"members = {self.members}, must be from 1 to 2^24")

    @property
    def step(self) -> float:
        """The least power of two of which 2^30 reach ``members * bound``."""
        return float(2.0 ** (math.ceil(math.log2(self.bound * self.members)) - SUM_BITS))

    def encoded(self, value: Tensor, stream: SecretStream) -> Words:
        """``value`` clipped to +-``bound`` and rounded to a neighbouring multiple of the step, at random, unbiased.

        A coordinate between two multiples goes to each with the chance of its nearness: the mean is the value itself.
        Negative numbers stand as 2^32 minus their size. The same shape.
        """
        exact = value.detach().cpu().numpy().astype(np.float64).clip(-self.bound, self.bound) / self.step
        low = np.floor(exact)
        chance = stream.words(low.size).reshape(low.shape).astype(np.float64) * 2.0**-64
        return (low + (chance < exact - low)).astype(np.int64).astype(np.uint32)

    def shortened(self, value: Tensor) -> Words:
        """The same with every coordinate rounded towards 0: biased, and no longer than the value by any measure."""
        exact = value.detach().cpu().numpy().astype(np.float64).clip(-self.bound, self.bound) / self.step
        return np.trunc(exact).astype(np.int64).astype(np.uint32)

    def decoded(self, words: Words) -> Tensor:
        """The real numbers, float64, of one encoded value or of a sum of them."""
        return torch.from_numpy(words.view(np.int32).astype(np.float64) * self.step)

    def possible(self, words: Words, summed: int) -> bool:
        """Whether this can be a sum of so many encoded values; a sum that masks did not leave whole almost never is."""
        reach = summed * (math.floor(self.bound / self.step) + 1)
        signed = words.view(np.int32)
        return not signed.size or (int(signed.min()) >= -reach and int(signed.max()) <= reach)


def encoded_update(
    update: Mapping[str, Tensor], grid: FixedPoint, stream: SecretStream, longest: float | None = None
) -> dict[str, Words]:
    """A whole update in the ring; with ``longest`` its L2 norm stays within it.

    Rounding at random lengthens a vector by up to sqrt(d) steps. Where differential privacy counts on the norm, the
    rounding is drawn again until it holds (Kairouz, Liu and Steinke 2021 call it conditional rounding), and after some
    tries everything is rounded towards 0, which never lengthens.
    """
    if longest is None:
        return {name: grid.encoded(value, stream) for name, value in update.items()}
    for _ in range(TRIES):
        drawn = {name: grid.encoded(value, stream) for name, value in update.items()}
        if math.sqrt(sum(float(grid.decoded(words).square().sum()) for words in drawn.values())) <= longest:
            return drawn
    return {name: grid.shortened(value) for name, value in update.items()}


class MaskStream:
    """A ChaCha20 keystream as 32-bit numbers; who knows the key can add it and take it away.

    Args:
        key: 32 bytes, used for one stream alone.
    """

    def __init__(self, key: bytes) -> None:
        self._stream: CipherContext = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
        self._zeros = bytes(4 * PIECE)

    def add_to(self, words: Words, sign: int = 1) -> None:
        """Add the stream's next numbers to ``words``, in place and modulo 2^32, or take them away (``sign`` -1)."""
        flat = words.reshape(-1)
        assert np.shares_memory(flat, words) or not words.size, "a copy would be masked instead"
        for start in range(0, flat.size, PIECE):
            part = flat[start : start + PIECE]
            drawn = np.frombuffer(self._stream.update(self._zeros[: 4 * part.size]), dtype="<u4")
            if sign > 0:
                part += drawn
            else:
                part -= drawn


def mask(vectors: Mapping[str, Words], key: bytes, sign: int = 1) -> None:
    """One stream over all the arrays, in the order of their names, in place. No further copy of them is made."""
    stream = MaskStream(key)
    for name in sorted(vectors):
        stream.add_to(vectors[name], sign)
