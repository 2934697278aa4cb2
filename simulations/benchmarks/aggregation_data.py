"""Aggregation measured: replies in memory to new weights, against torch's own in-place add of as many values.

``python -m simulations.benchmarks.aggregation_data --help``
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor

from server.aggregate import StreamingMean
from server.step import ServerStep
from simulations.benchmarks.measured import in_turns
from spact_models.exchange import expected_shapes
from spact_models.quantize import narrowed
from spact_models.resident import peak_rss_mb
from spact_models.round_settings import StrategyConfig

LAYERS = 40  # equal ones, as many as the paper's networks have convolutions


def measure_aggregation(
    sites: int, megabytes: float, dtype: str, repeats: int = 5, on_step: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Seconds from replies in memory to new weights, and of the twin: ``torch.Tensor.add_`` of float32 values.

    Both get the same number of values, in turn. The twin checks nothing and narrows nothing: it is what the memory
    allows.

    Args:
        sites: updates a round.
        megabytes: (10^6) of one update in float32; float16 and int8 carry the same values in a half and a quarter.
        dtype: of the updates.

    Returns:
        Per update, median, lowest and highest of the repeats: seconds of ours and the twin's, ``ratio`` of the twin's
        to ours (above 1 = faster than the twin); and GB/s of float32 values.
    """
    weights = layers(megabytes)
    update, scales = _update(weights, dtype)
    step = ServerStep(StrategyConfig(), weights)
    examples = {"anonymizer.": 8, "action.": 8}
    total, added = torch.zeros(_values(weights)), torch.full((_values(weights),), 1e-3)

    def ours() -> None:
        mean = StreamingMean(expected_shapes(weights), 1000)
        for _ in range(sites):
            mean.add(update, examples, scales)
        moved = mean.mean()
        del mean
        step.apply(moved)

    def twin() -> None:
        for _ in range(sites):
            total.add_(added)

    own, plain, ratio = in_turns(ours, twin, repeats, on_step)
    size = 4 * _values(weights)
    return {
        "sites": sites,
        "megabytes": round(size / 1e6, 1),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "seconds": asdict(own.times(1 / sites)),
        "seconds_add": asdict(plain.times(1 / sites)),
        "gb_per_s": round(size * sites / own.median / 1e9, 2),
        "gb_per_s_add": round(size * sites / plain.median / 1e9, 2),
        "ratio": asdict(ratio),
    }


def measure_peak_memory(sites: int, megabytes: float, dtype: str) -> float:
    """MB (2^20) that a process has needed at its peak, which took ``sites`` updates as they came and made the step.

    In a process of its own, and each update made when it is needed: as in a ServerApp, one reply is there at a time.
    """
    words = [sys.executable, "-m", __name__, "--peak", "--sites", str(sites)]
    words += ["--megabytes", str(megabytes), "--dtype", dtype]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def _take_one_after_the_other(sites: int, megabytes: float, dtype: str) -> float:
    weights = layers(megabytes)
    step = ServerStep(StrategyConfig(), weights)
    mean = StreamingMean(expected_shapes(weights), 1000)
    for number in range(sites):
        update, scales = _update(weights, dtype, number)
        mean.add(update, {"anonymizer.": 8, "action.": 8}, scales)
        del update
        gc.collect()
    moved = mean.mean()
    del mean
    step.apply(moved)
    return peak_rss_mb()


def layers(megabytes: float) -> dict[str, Tensor]:
    """Weights of zeros that take so many MB (10^6), half of them f_A's and half f_T's by name."""
    each = max(1, int(megabytes * 1e6 / 4 / LAYERS))
    branch = ("anonymizer", "action")
    return {f"{branch[number % 2]}.layer{number}.weight": torch.zeros(each) for number in range(LAYERS)}


def _values(weights: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in weights.values())


def _update(weights: Mapping[str, Tensor], dtype: str, seed: int = 0) -> tuple[dict[str, Array], dict[str, float]]:
    """One site's random differences as they lie in a message."""
    rng = np.random.default_rng(seed)
    arrays, scales = {}, {}
    for name, value in weights.items():
        change = torch.from_numpy(rng.standard_normal(value.numel(), dtype=np.float32).reshape(value.shape)) * 1e-3
        packed = narrowed({name: change}, dtype, {})
        arrays[name] = Array(packed.values[name].numpy())
        scales.update(packed.scales)
    return arrays, scales


def main() -> None:
    """Print what is measured, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--megabytes", type=float, default=200.0, help="of one update in float32")
    parser.add_argument("--dtype", choices=("float32", "float16", "int8"), default="float32")
    parser.add_argument("--peak", action="store_true", help="print only this process' peak memory in MB")
    args = parser.parse_args()
    if args.peak:
        print(_take_one_after_the_other(args.sites, args.megabytes, args.dtype))
        return
    print(json.dumps(measure_aggregation(args.sites, args.megabytes, args.dtype), indent=2))


if __name__ == "__main__":
    main()
