"""One site behind a slow link, real processes on loopback: does it hold the others, and what really crosses the wire?

A SuperLink, SuperNodes and the real ServerApp; in front of the SuperLink's port stands one small TCP proxy a site,
which counts every byte both ways and lets the slow site's through at its link's pace. The sites do not train: they
answer a round with random differences of the networks' size through the real door, because only the way is measured.

``python -m simulations.benchmarks.slow_link --help``
"""

from __future__ import annotations

import argparse
import itertools
import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.egress import Door, introduction, signature
from server.runs import RunFolder
from simulations.benchmarks.processes import ROOT, cpu_seconds, flwr_run, free_ports, resident, superlink, supernode
from spact_models.exchange import trained_names
from spact_models.run_config import load_settings

PIECE_BYTES = 1 << 14
CLASSES = ["jump", "walk"]
SHIM = """
from server.app import app as server
from simulations.benchmarks.slow_link import site as client
__all__ = ["client", "server"]
"""

site = ClientApp()
"""A site that answers at once: its node configuration holds its name and a folder."""


@site.query()
def join(message: Message, context: Context) -> Message:
    return Message(
        RecordDict({"site": introduction(str(context.node_config["name"]), CLASSES, 8, 0)}), reply_to=message
    )


@site.train()
def train(message: Message, context: Context) -> Message:
    settings, name = load_settings(context.run_config), str(context.node_config["name"])
    weights = {
        key: torch.from_numpy(array.numpy().copy()) for key, array in message.content.array_records["arrays"].items()
    }
    sent = {key: weights[key] for key in trained_names(weights, settings.wire.patterns)}
    moved = {key: value + 1e-3 * torch.randn(value.shape) for key, value in sent.items()}
    door = Door(name, Path(str(context.node_config["folder"])) / "ledger.jsonl", frozenset(sent), settings.wire.dtype)
    number = int(str(message.content.config_records["config"]["round"]))
    told = MetricRecord({"examples.anonymizer": 8, "examples.action": 8, "teacher_held": 1})
    update = door.update(door.pack(moved, sent, {}), number)
    return Message(RecordDict({**update, "metrics": told, "site": signature(name)}), reply_to=message)


@site.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    metrics, whose = MetricRecord({"examples": 1, "top1": 0.0}), signature(str(context.node_config["name"]))
    return Message(RecordDict({"metrics": metrics, "site": whose}), reply_to=message)


@dataclass
class Link:
    """A TCP proxy on loopback.

    Args:
        port: of the SuperLink behind it.
        bits_per_second: for each direction, over all its connections together; None: as fast as it goes.
        uplink_only: what comes down to the site is as fast as it goes, as with most homes' links.
    """

    port: int
    bits_per_second: float | None = None
    uplink_only: bool = False
    up: int = 0  # bytes from the site so far
    down: int = 0
    _free: dict[str, float] = field(default_factory=dict)  # direction -> when its link is free again
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.listens_on = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        for number in itertools.count():
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self.port))
            except OSError:  # closed, or the SuperLink is gone
                return
            for source, target, way in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._pump, args=(source, target, way, number), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, way: str, number: int) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE_BYTES):
                self.passed(piece, way, number)
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def passed(self, piece: bytes, way: str, connection: int) -> None:  # noqa: ARG002 (for who listens in)
        """Count a piece, and wait until the link has carried it behind all that came before."""
        size = len(piece)
        with self._lock:
            setattr(self, way, getattr(self, way) + size)
            if self.bits_per_second is None or (self.uplink_only and way == "down"):
                return
            done = max(self._free.get(way, 0.0), time.monotonic()) + 8 * size / self.bits_per_second
            self._free[way] = done
        time.sleep(max(0.0, done - time.monotonic()))


def measure(
    megabits: float = 10.0,
    sites: int = 3,
    deadline_seconds: float = 60.0,
    rounds: int = 1,
    database: str = "",
    uplink_only: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """A federation of which the first site has a link of ``megabits`` Mbit/s, 0 = as fast as the others.

    Args:
        deadline_seconds: ``rounds.timeout_seconds``.
        rounds: warm-up rounds.
        database: the SuperLink's; empty: its own default, in memory.
        uplink_only: the slow site's link is slow from the site to the SuperLink alone.
        settings: flat overrides, dots as two underscores (``networks__anonymizer_channels=64``).

    Returns:
        ``rounds`` (of each: seconds, who replied after how many seconds and with how many bytes, who was dropped and
        why), ``server_mb`` (2^20) that the ServerApp's process needed at its peak, ``links`` (bytes that crossed each
        site's link, up and down, framing and all), ``superlink_cpu_seconds`` of the SuperLink's own process over the
        whole run, ``superlink_rss_mb`` before and at its peak.
    """
    chosen = {
        "rounds.warmup": rounds,
        "rounds.minimax": 0,
        "rounds.min_sites": max(1, sites - 1),
        "rounds.timeout_seconds": deadline_seconds,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder = Path(made)
        chosen["run_dir"] = str(folder / "run")
        port, *own = free_ports(sites + 1)
        link = stack.enter_context(superlink(folder, port, database))
        paces = [megabits * 1e6 if number == 0 and megabits else None for number in range(sites)]
        proxies = [stack.enter_context(_closing(Link(port, pace, uplink_only))) for pace in paces]
        for number, (proxy, own_port) in enumerate(zip(proxies, own, strict=True), start=1):
            home = folder / f"site-{number}"
            home.mkdir()
            config = f"name='{home.name}' folder='{home}'"
            stack.enter_context(supernode(folder, home.name, proxy.listens_on, own_port, config))
        seen = stack.enter_context(resident([link.pid]))
        before = cpu_seconds(link.pid)
        flwr_run(folder, chosen, app_folder(folder))
        used = cpu_seconds(link.pid) - before
        lines = [line for line in RunFolder.open(folder / "run").history() if line["kind"] == "train"]
        summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
        return {
            "megabits": megabits,
            "deadline_seconds": deadline_seconds,
            "rounds": [round_of(line) for line in lines],
            "server_mb": summary["peak_rss_mb"],
            "links": [{"up": proxy.up, "down": proxy.down} for proxy in proxies],
            "superlink_cpu_seconds": round(used, 2),
            "superlink_rss_mb": {"before": round(seen["first"], 1), "peak": round(seen["first_peak"], 1)},
        }


def round_of(line: dict[str, Any]) -> dict[str, Any]:
    """What is told of a line of the history."""
    keys = ("seconds", "bytes_up", "bytes_down")
    return {
        "seconds": round(line["seconds"], 1),
        "sites": {entry["name"]: {key: entry[key] for key in keys} for entry in line["sites"]},
        "dropped": {entry["name"]: entry["reason"] for entry in line["dropped"]},
    }


@contextmanager
def _closing(link: Link) -> Iterator[Link]:
    try:
        yield link
    finally:
        link.close()


def app_folder(folder: Path) -> Path:
    """An app of the real server and of sites that do not train."""
    app = folder / "app"
    app.mkdir()
    (app / "slow_link_app.py").write_text(SHIM, encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for ours, theirs in (
        ('"server.app:app"', '"slow_link_app:server"'),
        ('"client.app:app"', '"slow_link_app:client"'),
        ('["spact_models/**/*.py", "client/**/*.py", "server/**/*.py"]', '["slow_link_app.py"]'),
    ):
        project = project.replace(ours, theirs)
    (app / "pyproject.toml").write_text(project, encoding="utf-8")
    return app


def main() -> None:
    """Print what :func:`measure` returns, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabits", type=float, default=10.0, help="of the first site's link; 0: no limit")
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds a round waits for its replies")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--database", default="", help="the SuperLink's; empty: in memory")
    parser.add_argument("--uplink-only", action="store_true", help="the first site's link is slow upwards alone")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the run")
    args = parser.parse_args()
    from spact_models.run_config import parse_assignment

    chosen = dict(parse_assignment(text) for text in args.set)
    told = measure(args.megabits, args.sites, args.deadline, args.rounds, args.database, args.uplink_only, **chosen)
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
