"""``fedspact bench --profile``: where a step's time goes, what bounds each part, and how far it is from that limit."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from simulations.benchmarks.measured import seconds_of
from simulations.benchmarks.step import Scene, pair, peak_flops
from spact_models.minimax import Players

SHOWN = 14
FORWARD, BACKWARD, PRODUCTS = "convolution, forward", "convolution, backward", "matrix products"
NORMS, NORMS_BACK = "group norm, forward", "group norm, backward"
RECTIFIERS, RECTIFIERS_BACK, COPIES, ADAM = "rectifiers, forward", "rectifiers, backward", "copies", "Adam, fused"
REST = "all else"
PARTS = {  # of the profiler's operations, each the topmost that is one of torch's; others are parts of their own
    **dict.fromkeys(("aten::conv2d", "aten::conv3d", "aten::convolution"), FORWARD),
    "aten::convolution_backward": BACKWARD,
    **dict.fromkeys(("aten::linear", "aten::matmul", "aten::mm", "aten::addmm", "aten::bmm"), PRODUCTS),
    **dict.fromkeys(("aten::group_norm", "aten::native_group_norm"), NORMS),
    "aten::native_group_norm_backward": NORMS_BACK,
    **dict.fromkeys(("aten::relu", "aten::relu_"), RECTIFIERS),
    "aten::threshold_backward": RECTIFIERS_BACK,
    **dict.fromkeys(("aten::to", "aten::contiguous", "aten::clone", "aten::copy_"), COPIES),
    "aten::_fused_adam_": ADAM,
}
FLOPS = {  # torch's names where it counts them
    "aten.convolution": FORWARD,
    "aten.convolution_backward": BACKWARD,
    **dict.fromkeys(("aten.mm", "aten.addmm", "aten.bmm"), PRODUCTS),
}
# The inputs whose bytes must at least travel, reading and writing: an output counts as the input that has its size.
BYTES = {
    "aten::native_group_norm": (0, 0),
    "aten::native_group_norm_backward": (0, 1, 1),
    "aten::relu": (0, 0),
    "aten::relu_": (0, 0),
    "aten::threshold_backward": (0, 1, 0),
    "aten::copy_": (0, 1),
}
SIZES = {"float": 4, "double": 8, "c10::BFloat16": 2, "c10::Half": 2, "unsigned char": 1, "bool": 1, "long int": 8}
ADAM_PASSES = 7  # weight, gradient and two moments are read, all but the gradient written


def profiled(quick: bool, precision: str = "fp32") -> str:
    """A table of the parts that take the most time of one pair of moves, and the machine's two limits."""
    scene = Scene.make(precision, quick)
    players = scene.ours()
    pair(players, scene)
    gpu = scene.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=kinds, record_shapes=True) as record:
        pair(players, scene)
    shares, calls, travelled = _by_part(record.events(), "self_device_time_total" if gpu else "self_cpu_time_total")
    travelled[ADAM] = ADAM_PASSES * _parameter_bytes(players)
    flops = _flops_by_part(lambda: pair(players, scene))
    peak, band = peak_flops(scene.device, precision), bandwidth(scene.device)
    total = sum(shares.values())
    lines = ["| part | calls | share of time | bound by | reached | of the limit |", "|---|---|---|---|---|---|"]
    for part, own in shares.most_common(SHOWN):
        bound = _bound(own / 1e6, flops.get(part, 0), travelled.get(part, 0), peak, band)
        lines.append(f"| {part} | {calls[part]} | {100 * own / total:.1f} % | {bound} |")
    left = sum(own for _, own in shares.most_common()[SHOWN:])
    lines.append(f"| {REST} | – | {100 * left / total:.1f} % | – | – | – |")
    limits = f"matrix product or convolution {peak / 1e9:.1f} GFLOP/s ({precision}), copy {band / 1e9:.1f} GB/s"
    travel = "GB/s count what must travel at least; what a cache still holds may exceed the limit"
    lines += ["", f"Limits here: {limits}; {torch.get_num_threads()} threads. {travel}."]
    return "\n".join(lines)


def bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Bytes a second that a copy of a large tensor reads and writes together."""
    source = torch.zeros(megabytes * 250_000, device=device)
    target = torch.empty_like(source)
    took = min(seconds_of(lambda: target.copy_(source)) for _ in range(4))
    return 2 * source.numel() * 4 / took


def _bound(seconds: float, flops: int, travelled: int, peak: float, band: float) -> str:
    """Three cells: what bounds a part, what it reaches, its share of that limit; dashes where nothing is counted."""
    if seconds and flops:
        return f"arithmetic | {flops / seconds / 1e9:.1f} GFLOP/s | {100 * flops / seconds / peak:.0f} %"
    if seconds and travelled:
        return f"memory | {travelled / seconds / 1e9:.1f} GB/s | {100 * travelled / seconds / band:.0f} %"
    return "– | – | –"


def _by_part(events: Any, key: str) -> tuple[Counter[str], Counter[str], dict[str, int]]:
    """Microseconds, calls and bytes of each part: all below an operation belongs to the topmost that has a name."""
    took, calls, travelled, blind = Counter[str](), Counter[str](), Counter[str](), set()
    for event in events:
        if event.device_type.name != "CPU":  # a kernel stands there a second time, without what started it
            continue
        top, above = event, event.cpu_parent
        while above is not None:
            top = above if above.name.startswith("aten::") else top
            above = above.cpu_parent
        part = PARTS.get(top.name, top.name.removeprefix("aten::"))
        took[part] += getattr(event, key)
        calls[part] += event is top
        if event.name in BYTES and PARTS[event.name] == part:
            moved = _bytes_of(event)
            travelled[part] += moved
            if not moved:
                blind.add(part)
    return took, calls, {part: count for part, count in travelled.items() if part not in blind}


def _bytes_of(event: Any) -> int:
    """Of one call; 0 where the profiler does not know a type's size."""
    sizes = [SIZES.get(event.input_dtypes[number], 0) for number in BYTES[event.name]]
    values = [math.prod(event.input_shapes[number]) for number in BYTES[event.name]]
    return sum(map(operator.mul, sizes, values)) if all(sizes) else 0


def _parameter_bytes(players: Players) -> int:
    """Of everything that the three optimizers step once in a pair of moves."""
    seats = (players.anonymizer, players.action, players.privacy)
    groups = (group for seat in seats for group in seat.optimizer.param_groups)
    return sum(value.numel() * value.element_size() for group in groups for value in group["params"])


def _flops_by_part(play: Callable[[], object]) -> Mapping[str, int]:
    with FlopCounterMode(display=False) as counter:
        play()
    counted = Counter[str]()
    for operation, flops in counter.get_flop_counts()["Global"].items():
        counted[FLOPS.get(str(operation), REST)] += flops
    return counted
