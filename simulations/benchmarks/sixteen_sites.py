"""Sixteen real SuperNodes, a SuperLink and ``flwr run`` on this machine: does it hold, and what does a round cost?

Each site is the real ClientApp with its own few videos and the tiny networks; each message starts a process at its
site, as in the field. With sixteen of them on few cores a round is mostly that: sixteen times loading torch.

``python -m simulations.benchmarks.sixteen_sites --help``
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.video.encode import write_video
from client.video.rows import Row
from server.runs import SUMMARY, RunFolder
from simulations.partition import write_sites

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 3600.0
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
        ``rss_mb``: the resident memory of all processes together at its peak (MB of 2^20; shared pages count for each
        process that maps them), and the largest of the ServerApp's and the SuperLink's process groups; ``machine``.
    """
    chosen = {**SMALL, "rounds.warmup": rounds, "rounds.min_sites": sites, "rounds.timeout_seconds": deadline_seconds}
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder = Path(made)
        files = _deal(folder, sites)
        port, *own = _free_ports(sites + 1)
        home = folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(f'[superlink.loopback]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
        link = ["flower-superlink", "--insecure", "--port", str(port), "--disable-runtime-dependency-installation"]
        groups = [stack.enter_context(_running(folder, "superlink", link)).pid]
        _await_port(port)
        for number, (file, own_port) in enumerate(zip(files, own, strict=True), start=1):
            node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(own_port)]
            node += ["--node-config", f"site='{file}'"]
            groups.append(stack.enter_context(_running(folder, f"site-{number}", node)).pid)
        peaks = stack.enter_context(_resident(groups))
        _flwr_run(folder, {**chosen, "run_dir": str(folder / "run")})
        lines = [line for line in RunFolder.open(folder / "run").history() if line["kind"] == "train"]
    return {
        "sites": sites,
        "rounds": [_round(line) for line in lines],
        "rss_mb": {"all": round(peaks["all"]), "superlink_and_serverapp": round(peaks["link"])},
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


def _flwr_run(folder: Path, chosen: dict[str, Any]) -> None:
    overrides = folder / "overrides.toml"
    overrides.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in chosen.items()), encoding="utf-8")
    words = ["flwr", "run", str(ROOT), "loopback", "--stream", "--run-config", str(overrides)]
    with _running(folder, "flwr-run", words) as process:
        process.wait(timeout=PATIENCE_SECONDS)
    if not (folder / "run" / SUMMARY).exists():
        logs = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(folder.glob("*.log")))
        raise RuntimeError(f"the federation did not end well\n{logs}")


@contextmanager
def _running(folder: Path, name: str, words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command of this environment in a process group of its own, which ends with the block."""
    commands = Path(sys.executable).parent
    own = {"FLWR_HOME": str(folder / "home"), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"  # a SuperLink starts its helpers by name
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(commands / words[0]), *words[1:]],
            cwd=folder,
            env={**os.environ, **own, "PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for number in (15, 9):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)


@contextmanager
def _resident(groups: Sequence[int]) -> Iterator[dict[str, float]]:
    """Peaks of the resident memory of these process groups together and of the first alone (Linux)."""
    peaks, over = {"all": 0.0, "link": 0.0}, threading.Event()

    def look() -> None:
        while not over.wait(1.0):
            held = dict.fromkeys(groups, 0.0)
            for stat in Path("/proc").glob("[0-9]*/stat"):
                with suppress(OSError, ValueError, IndexError):  # it may be gone by now
                    told = stat.read_text().rpartition(")")[2].split()  # after the name: state, parent, group, ...
                    if int(told[2]) in held:
                        held[int(told[2])] += int(told[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20
            peaks["all"] = max(peaks["all"], sum(held.values()))
            peaks["link"] = max(peaks["link"], held[groups[0]])

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the SuperLink does not listen on port {port}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


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
