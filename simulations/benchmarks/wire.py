"""``aggregation-…`` and ``wire-…``: the server's mean against a bare addition, and an update's bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from flwr.app import RecordDict

from client.egress import Door
from server.wire import wire_bytes
from simulations.benchmarks.aggregation_data import measure_aggregation
from simulations.benchmarks.measured import Row, Spread
from simulations.benchmarks.server_memory import PAPER, SMALL
from simulations.benchmarks.server_memory import measure as measure_server_memory
from spact_models.exchange import snapshot, trained_names
from spact_models.networks import build_networks
from spact_models.run_config import load_settings

SUBSET = ("*.exit.*", "action.fc.*")
MB = {"float16": 103.0, "int8": 52.0}  # targets, the paper's networks


def measure_aggregation_speed(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:
    """Replies in memory to new weights, checked, against torch's own in-place addition."""
    size = 20.0 if quick else 200.0
    for dtype in ("float32", "float16", "int8"):
        found = measure_aggregation(8, size, dtype, repeats, on_step)
        ours, twin, ratio = (Spread(**found[name]) for name in ("seconds", "seconds_add", "ratio"))
        what = f"8 updates of {found['megabytes']:.0f} MB (float32) as {dtype}, a second each, against add_"
        note = f"{found['gb_per_s']} GB/s of values, add_ {found['gb_per_s_add']}"
        yield Row(f"aggregation-{dtype}", what, "s", ours, twin, ratio, 0.5, "at least", note)


def measure_aggregation_memory(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:  # noqa: ARG001
    """What the ServerApp of a real run needs beside 64 sites more than beside 4, in models."""
    few, many = (measure_server_memory(sites, SMALL if quick else PAPER) for sites in (4, 64))
    on_step()
    more = (many["server_mb"] - few["server_mb"]) / many["model_mb"]
    size = many["model_mb"] * 2**20 / 1e6
    what = f"peak memory of a run's ServerApp beside 64 sites, of {size:.0f} MB each in float32, more than beside 4"
    note = f"{few['server_mb']:.0f} MB with 4, {many['server_mb']:.0f} MB with 64"
    yield Row("aggregation-memory", what, "models", Spread.of([more]), None, None, 1.0, "at most", note)


def measure_wire(quick: bool, repeats: int, on_step: Callable[[], object]) -> Iterator[Row]:  # noqa: ARG001
    """Bytes of one site's update of the paper's networks, as Flower's objects carry it."""
    settings = load_settings({"preset": "paper", "networks.norm": "group", "device": "cpu"})
    networks = build_networks(settings, [f"action-{number}" for number in range(101)])
    before = snapshot(networks.anonymizer, networks.action)
    generator = torch.Generator().manual_seed(0)
    after = {name: value + 1e-3 * torch.randn(value.shape, generator=generator) for name, value in before.items()}
    sizes = {dtype: _megabytes(after, before, dtype) for dtype in ("float32", "float16", "int8")}
    subset = trained_names(after, SUBSET)
    some = _megabytes({name: after[name] for name in subset}, {name: before[name] for name in subset}, "float16")
    on_step()
    for dtype, target in MB.items():
        note = f"{100 * sizes[dtype] / sizes['float32']:.1f} % of float32's {sizes['float32']:.0f} MB"
        size = Spread.of([sizes[dtype]])
        what = "one site's update of the paper's f_A and f_T"
        yield Row(f"wire-{dtype}", what, "MB", size, None, None, target, "at most", note)
    share = Spread.of([100 * some / sizes["float32"]])
    yield Row("wire-subset", f"wire.parameters = {','.join(SUBSET)}", "% of float32", share, None, None, 1.0, "at most")


def _megabytes(after: dict[str, torch.Tensor], before: dict[str, torch.Tensor], dtype: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        door = Door("bench", Path(folder) / "ledger.jsonl", frozenset(after), dtype)
        records = door.update(door.pack(after, before, {}), 1)
        return wire_bytes(RecordDict(dict(records))) / 1e6
