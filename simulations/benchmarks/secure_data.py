"""Secure aggregation measured: time and bytes of a round of large updates, beside the plain mean of the same ones.

``python -m simulations.benchmarks.secure_data --help``
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array
from torch import Tensor
from tqdm import tqdm

from server.aggregate import StreamingMean
from server.masked import read_words
from simulations.benchmarks.aggregation_data import layers
from simulations.benchmarks.secure_play import SecurePlay
from spact_models.exchange import BRANCHES, expected_shapes
from spact_models.noise import SecretStream
from spact_models.resident import peak_rss_mb
from spact_models.ring import TAUGHT, FixedPoint, encoded_update, mask
from spact_models.run_config import load_settings

MODULE = "simulations.benchmarks.secure_data"
CONFIG = {"secure.aggregation": True, "strategy.weighting": "equal", "rounds.min_sites": 2}


def measure(sites: int, megabytes: float, lost: int, neighbours: int = 0) -> dict[str, Any]:
    """One whole execution, ``lost`` of the sites gone after they have dealt their shares.

    Args:
        sites: in the round.
        megabytes: (10^6) of one update in float32, which is also what it has masked.

    Returns:
        CPU seconds of one site (its masks, and everything else it does), of the server per update and to open the sum,
        those of the plain mean of the same updates, bytes, and how far the two means are apart in steps of the ring.
    """
    weights = layers(megabytes)
    shapes = expected_shapes(weights)
    names = [f"site-{number:04d}" for number in range(sites)]
    keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in names}
    settings = load_settings({**CONFIG, "secure.neighbours": neighbours})
    clock: dict[str, float] = {"site": 0.0, "short": 0.0, "plain": 0.0}
    plain = StreamingMean(shapes, 10, "equal")
    bar = tqdm(total=sites, desc="secure", unit="site", leave=False)

    def update(name: str) -> Mapping[str, Tensor]:
        """Made anew for each of its two uses; the plain mean takes it on the way."""
        made = _update(weights, names.index(name))
        arrays = {key: Array(value.numpy()) for key, value in made.items()}
        started = time.process_time()
        plain.add(arrays, dict.fromkeys(BRANCHES, 1))
        clock["plain"] += time.process_time() - started
        bar.update()
        return made

    with tempfile.TemporaryDirectory() as folder:
        play = SecurePlay(Path(folder), settings, keys, update, shapes)
        play.keep = False
        play.lost_at = dict.fromkeys(names[:lost], "training")
        for name in names:
            _timed(play.sites[name], "masked", clock, "site")
            for stage in ("keys", "shares", "receive", "confirm", "unmask"):
                _timed(play.sites[name], stage, clock, "short")
        _timed(play.sum, "add", clock, "add")
        play.collect()
        started = time.process_time()
        shorts = clock["short"]
        mean, summed = play.sum.open(play.grid)
        opening = time.process_time() - started - (clock["short"] - shorts)
    bar.close()
    expected = plain.mean()
    apart = max(float((mean[name] - expected[name]).abs().max()) for name in mean)
    size = 4 * sum(math.prod(shape) for shape in shapes.values())
    about = {"sites": sites, "megabytes": round(size / 1e6, 1), "lost": lost, "neighbours": neighbours or sites - 1}
    seconds = {
        "site_masks": clock["site"] / summed,
        "site_short_messages": clock["short"] / sites,
        "server_add_per_update": clock["add"] / summed,
        "server_open": opening,
        "plain_mean_per_update": clock["plain"] / summed,
    }
    short = (play.sum.bytes_up + play.sum.bytes_down) / sites
    return {
        **about,
        "cpu_seconds": {name: round(value, 4) for name, value in seconds.items()},
        "bytes": {"masked_update": size, "short_messages_per_site": round(short), "plain_float16": size // 2},
        "apart_in_steps": round(apart / FixedPoint(1.0, sites).step, 3),
        "threads": torch.get_num_threads(),
    }


def peak_memory(megabytes: float, side: str, sites: int = 16) -> float:
    """MB (2^20) at the peak of a process that has done one half's heaviest work.

    ``site``: an update, put into the ring and masked. ``server``: replies added as they come, and masks taken out.
    """
    words = [sys.executable, "-m", MODULE, "--peak", side, "--sites", str(sites), "--megabytes", str(megabytes)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def _peak(side: str, sites: int, megabytes: float) -> float:
    weights = layers(megabytes)
    if side == "site":
        vectors = encoded_update(_update(weights, 0), FixedPoint(1.0, sites), SecretStream())
        vectors[TAUGHT] = np.zeros(2, np.uint32)
        for number in range(sites):
            mask(vectors, bytes([number]) * 32)
    elif side == "server":
        total: dict[str, Any] = {}
        for number in range(sites):
            reply = {name: Array(_words(value.numel(), number)) for name, value in weights.items()}
            for name, value in weights.items():
                words = read_words(name, reply[name], tuple(value.shape))
                if name in total:
                    total[name] += words
                else:
                    total[name] = words.copy()
            del reply, words
        for number in range(sites):
            mask(total, bytes([number]) * 32, -1)
    return peak_rss_mb()


def _update(weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(rng.standard_normal(value.numel(), dtype=np.float32).reshape(value.shape)) * 1e-3
        for name, value in weights.items()
    }


def _words(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 2**32, count, np.uint32)


def _timed(owner: object, method: str, clock: dict[str, float], entry: str) -> None:
    """Add the CPU seconds of each call of ``owner.method`` to ``clock[entry]``."""
    inner = getattr(owner, method)
    clock.setdefault(entry, 0.0)

    def timed(*words: Any) -> Any:
        started, apart = time.process_time(), clock["plain"]
        try:
            return inner(*words)
        finally:
            clock[entry] += time.process_time() - started - (clock["plain"] - apart)

    setattr(owner, method, timed)


def main() -> None:
    """Print what is measured, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sites", type=int, default=16)
    parser.add_argument("--megabytes", type=float, default=200.0, help="of one update in float32")
    parser.add_argument("--lost", type=int, default=1, help="sites that are gone after they have dealt their shares")
    parser.add_argument("--neighbours", type=int, default=0, help="secure.neighbours; 0 = all")
    parser.add_argument("--peak", choices=("none", "site", "server"), help="print only a process' peak memory in MB")
    args = parser.parse_args()
    if args.peak:
        print(_peak(args.peak, args.sites, args.megabytes))
        return
    told = measure(args.sites, args.megabytes, args.lost, args.neighbours)
    told["peak_mb"] = {
        side: round(peak_memory(args.megabytes, side, args.sites)) for side in ("none", "site", "server")
    }
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
