"""Small tensors of fixed numbers, made once for each type and device.

Making one on a GPU is a copy from ordinary memory, which waits for all that the GPU has still to do. With a few dozen
of them in a step the process could never run ahead.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

Numbers = tuple[float, ...] | tuple[tuple[float, ...], ...]


@lru_cache(maxsize=64)
def constant(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers as a tensor that everybody shares: nobody may write into it.

    It can stand in a graph even if it is first asked for in inference mode.
    """
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device=device)
