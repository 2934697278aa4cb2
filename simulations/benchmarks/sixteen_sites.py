"""Sixteen real SuperNodes, a SuperLink and ``flwr run`` on this machine: does it hold, and what does a round cost?

Each site is the real ClientApp with its own few videos and the tiny networks; each message starts a process at its
site, as in the field. With sixteen of them on few cores a round is mostly that: sixteen times loading torch.

``python -m simulations.benchmarks.sixteen_sites --help``
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.video.encode import write_video
from client.video.rows import Row
from server.runs import RunFolder
from simulations.benchmarks.processes import cpu_seconds, flwr_run, free_ports, resident, superlink, supernode
from simulations.partition import write_sites

VIDEOS_A_SITE = 2
SMALL = {  # the smallest game that is still the whole game: the federation is measured, not the training
    "clip.frames": 4,
    "clip.size_px": 16,
    "clip.stride_frames": 1,
    "batch.clips": 2,
    "batch.views": 2,
    "networks.anonymizer_channels": 4,
    "networks.anonymizer_depth": 1,
    "warmup.steps": 1,
    "rounds.minimax": 0,
    "device": "cpu",
}


def measure(sites: int = 16, rounds: int = 2, deadline_seconds: float = 1800.0) -> dict[str, Any]:
    """A federation of ``sites`` SuperNodes over ``rounds`` warm-up rounds.

    Returns:
        ``rounds``: of each the seconds, how many sites replied, the first's and the last's seconds, bytes both ways;
        ``rss_mb``: the resident memory at its peak (MB of 2^20) of all SuperNodes with their ClientApps and the
        SuperLink together (shared pages count for each process that maps them), and of the SuperLink's process group;
        ``superlink_cpu_seconds`` of the SuperLink's own process over the whole run; ``machine``.
    """
    chosen = {**SMALL, "rounds.warmup": rounds, "rounds.min_sites": sites, "rounds.timeout_seconds": deadline_seconds}
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder = Path(made)
        files = _deal(folder, sites)
        port, *own = free_ports(sites + 1)
        groups = [stack.enter_context(superlink(folder, port)).pid]
        for number, (file, own_port) in enumerate(zip(files, own, strict=True), start=1):
            groups.append(
                stack.enter_context(supernode(folder, f"site-{number}", port, own_port, f"site='{file}'")).pid
            )
        seen = stack.enter_context(resident(groups))
        before = cpu_seconds(groups[0])
        flwr_run(folder, {**chosen, "run_dir": str(folder / "run")})
        used = cpu_seconds(groups[0]) - before
        lines = [line for line in RunFolder.open(folder / "run").history() if line["kind"] == "train"]
    return {
        "sites": sites,
        "rounds": [_round(line) for line in lines],
        "rss_mb": {"all": round(seen["peak"]), "superlink": round(seen["first_peak"])},
        "superlink_cpu_seconds": round(used, 2),
        "machine": {"cores": len(os.sched_getaffinity(0)), "torch": torch.__version__},
    }


def _round(line: dict[str, Any]) -> dict[str, Any]:
    seconds = sorted(site["seconds"] for site in line["sites"])
    told = {"seconds": round(line["seconds"], 1), "replied": len(seconds), "left_out": len(line["dropped"])}
    ends = {"first_reply": seconds[0], "last_reply": seconds[-1]} if seconds else {}
    return {**told, **ends, "bytes_up": line["bytes_up"], "bytes_down": line["bytes_down"]}


def _deal(folder: Path, sites: int) -> list[Path]:
    """Each site's file, with videos of a square that goes sideways or up and down."""
    shares = []
    (folder / "videos").mkdir()
    for site in range(sites):
        rows = []
        for number in range(VIDEOS_A_SITE):
            path = folder / "videos" / f"{site}-{number}.mp4"
            action = ("walk", "jump")[number % 2]
            write_video(path, _square(action, 3 * site), fps=12.5)
            rows.append(Row(path, action, f"home-{site}", "train", f"camera-{site}", {}))
        shares.append(rows)
    return write_sites(folder / "sites", shares, 0, folder / "cache")


def _square(action: str, phase: int, frames: int = 10, size: int = 32) -> Iterator[np.ndarray]:
    for t in range(frames):
        frame_HWC = np.full((size, size, 3), 90, np.uint8)
        place = (phase + 2 * t) % (size - 8)
        y, x = (size // 2 - 4, place) if action == "walk" else (place, size // 2 - 4)
        frame_HWC[y : y + 8, x : x + 8] = (220, 40, 40)
        yield frame_HWC


def main() -> None:
    """Print what :func:`measure` returns, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sites", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--deadline", type=float, default=1800.0, help="seconds a round waits for its replies")
    args = parser.parse_args()
    print(json.dumps(measure(args.sites, args.rounds, args.deadline), indent=2))


if __name__ == "__main__":
    main()
