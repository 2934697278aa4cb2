"""How much memory the ServerApp of a real run needs beside so many sites.

A SuperLink, ``flwr run`` and its ServerApp are real processes. Each site is a thread here that speaks to the SuperLink
as a SuperNode does, through Flower's own connection, and answers with the ClientApp of slow_link.py: 64 SuperNodes with
a process of torch each would not fit into a machine, and the ServerApp cannot tell the difference.

``python -m simulations.benchmarks.server_memory --help``
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supernode.fleet_http_connection import http_request_response

from server.runs import RunFolder
from simulations.benchmarks.processes import flwr_run, free_ports, resident, superlink
from simulations.benchmarks.slow_link import app_folder, round_of, site

PAPER = {"preset": "paper", "networks.norm": "group"}  # 50.5 M parameters: 202 MB
SMALL = {"networks.anonymizer_channels": 32, "networks.anonymizer_depth": 4}  # 4.4 M: 18 MB
OBJECTS_KEPT = 1024  # of 5 MiB at most; a round's weights and requests are some hundred
POLL_SECONDS = 3.0  # as a SuperNode


def measure(
    sites: int, settings: dict[str, Any], uploads: int = 16, deadline_seconds: float = 3600.0, database: str = ""
) -> dict[str, Any]:
    """One round and one evaluation.

    Args:
        settings: flat overrides of the run's.
        uploads: sites that send their updates at the same time. Each holds its update here meanwhile.
        deadline_seconds: ``rounds.timeout_seconds``.
        database: the SuperLink's; empty: in memory, where all the replies that wait need room.

    Returns:
        ``server_mb``: the ServerApp process's peak (2^20 bytes), told by itself; ``model_mb``: of the weights in
        float32; ``superlink_mb``: its peak; ``rounds`` as slow_link.py tells them.
    """
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder = Path(made)
        chosen = {
            "rounds.warmup": 1,
            "rounds.minimax": 0,
            "rounds.min_sites": sites,
            "rounds.timeout_seconds": deadline_seconds,
            **settings,
            "run_dir": str(folder / "run"),
        }
        (port,) = free_ports(1)
        link = stack.enter_context(superlink(folder, port, database))
        crowd = Crowd(port, chosen, uploads)
        stack.callback(crowd.stop)
        for number in range(1, sites + 1):
            crowd.join(folder, f"site-{number}")
        seen = stack.enter_context(resident([link.pid]))
        flwr_run(folder, chosen, app_folder(folder))
        run = RunFolder.open(folder / "run")
        lines = [line for line in run.history() if line["kind"] == "train"]
        (newest,) = list(run.checkpoints().values())[-1:]
        return {
            "sites": sites,
            "server_mb": json.loads((folder / "run" / "summary.json").read_text())["peak_rss_mb"],
            "model_mb": round(newest.stat().st_size / 2**20, 1),
            "superlink_mb": round(seen["first_peak"], 1),
            "rounds": [round_of(line) for line in lines],
        }


class Crowd:
    """Sites of one process.

    Args:
        port: the SuperLink's.
        settings: the run's, flat.
        uploads: how many may send at the same time.
    """

    def __init__(self, port: int, settings: dict[str, Any], uploads: int) -> None:
        self._address, self._settings = f"127.0.0.1:{port}", settings
        self._over, self._work = threading.Event(), threading.Lock()
        self._uploads = threading.Semaphore(uploads)
        self._threads: list[threading.Thread] = []
        self._kept: dict[str, bytes] = {}  # objects that came from the SuperLink

    def join(self, folder: Path, name: str) -> None:
        """One more site, with a folder for its ledger in ``folder``."""
        home = folder / name
        home.mkdir()
        config = {"name": name, "folder": str(home)}
        self._threads.append(threading.Thread(target=self._live, args=(config,), daemon=True))
        self._threads[-1].start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _live(self, config: dict[str, Any]) -> None:
        with http_request_response(self._address, insecure=True) as connection:
            node_id, receive, send, _, _, pull_object, push_object, confirm = connection
            context = Context(1, node_id, config, RecordDict(), self._settings)
            while not self._over.wait(POLL_SECONDS):
                try:
                    received = receive()
                    if received is not None:
                        self._answer(received, context, send, pull_object, push_object, confirm)
                except httpx.HTTPStatusError:  # the run ended meanwhile
                    continue

    def _answer(
        self,
        received: tuple[Message, Any],
        context: Context,
        send: Callable[..., tuple[set[str], str]],
        pull_object: Callable[[int, str], bytes],
        push_object: Callable[[int, str, str, bytes], None],
        confirm: Callable[[int, str], None],
    ) -> None:
        metadata, tree = received[0].metadata, received[1]
        with self._uploads:
            with self._work:  # one at a time: it is the server's memory that is measured, not the crowd's
                message = pull_and_inflate_object_from_tree(
                    tree,
                    partial(self._shared, pull_object, metadata.run_id),
                    partial(confirm, metadata.run_id),
                    return_type=Message,
                )
                message.metadata.__dict__["_message_id"] = metadata.message_id
                reply = site(message, context)
                del message
            reply.metadata.__dict__["_message_id"] = reply.object_id
            missing, session = send(reply, get_object_tree(reply), 0.0)
            objects = get_all_nested_objects(reply)
            del reply
            push_objects(objects, partial(push_object, metadata.run_id, session), object_ids_to_push=missing)

    def _shared(self, pull_object: Callable[[int, str], bytes], run_id: int, object_id: str) -> bytes:
        """The weights go to every site of a round: they are fetched once for all."""
        if len(self._kept) > OBJECTS_KEPT:
            self._kept.clear()
        content = self._kept.get(object_id) or pull_object(run_id, object_id)
        self._kept[object_id] = content
        return content


def main() -> None:
    """Print what :func:`measure` returns, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sites", type=int, default=64)
    parser.add_argument("--small", action="store_true", help="networks of 18 MB instead of the paper's 202 MB")
    parser.add_argument("--uploads", type=int, default=16, help="sites that send at the same time")
    parser.add_argument("--database", default="", help="the SuperLink's; empty: in memory")
    args = parser.parse_args()
    found = measure(args.sites, SMALL if args.small else PAPER, args.uploads, database=args.database)
    for each in found["rounds"]:
        each["sites"] = len(each["sites"])
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
