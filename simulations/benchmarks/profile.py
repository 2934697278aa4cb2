"""``fedspact bench --profile``: where the step's time goes, and how far it is from the machine's limits."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from simulations.benchmarks.measured import seconds_of
from simulations.benchmarks.step import Scene, pair, peak_flops

SHOWN = 14


def profiled(quick: bool) -> str:
    """A table of the operations that take the most time of one pair of moves, and the machine's two limits."""
    scene = Scene.make("fp32", quick)
    players = scene.ours()
    pair(players, scene)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if scene.device.type == "cuda" else [])]
    with profile(activities=kinds, with_flops=True) as record:
        pair(players, scene)
    key = "self_cuda_time_total" if scene.device.type == "cuda" else "self_cpu_time_total"
    # a kernel stands there a second time by its own name, without the operation that started it
    operations = [event for event in record.key_averages() if event.device_type.name == "CPU"]
    events = sorted(operations, key=lambda event: -_own(event, key))
    total = sum(_own(event, key) for event in events)
    lines = ["| operation | calls | share of time | GFLOP/s |", "|---|---|---|---|"]
    for event in events[:SHOWN]:
        own = _own(event, key)
        rate = f"{event.flops / own / 1e3:.1f}" if event.flops and own else "–"
        lines.append(f"| {event.key} | {event.count} | {100 * own / total:.1f} % | {rate} |")
    peak, band = peak_flops(scene.device) / 1e9, bandwidth(scene.device) / 1e9
    limits = f"matrix product or convolution {peak:.1f} GFLOP/s, copy {band:.1f} GB/s"
    lines += ["", f"Limits here: {limits}; {torch.get_num_threads()} threads."]
    return "\n".join(lines)


def bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Bytes a second that a copy of a large tensor reads and writes together."""
    source = torch.zeros(megabytes * 250_000, device=device)
    target = torch.empty_like(source)
    took = min(seconds_of(lambda: target.copy_(source)) for _ in range(4))
    return 2 * source.numel() * 4 / took


def _own(event: object, key: str) -> float:
    """Microseconds of the operation without those that it calls."""
    microseconds: float = getattr(event, key, 0.0) or getattr(event, key.replace("cuda", "device"), 0.0)
    return microseconds
