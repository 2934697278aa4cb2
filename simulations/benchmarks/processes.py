"""A federation's real processes on loopback, for the measurements: SuperLink, SuperNodes and ``flwr run``."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from spact_models.errors import RunStopped

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 3600.0


@contextmanager
def running(folder: Path, name: str, words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command of this environment in a process group of its own, which ends with the block; it logs to NAME.log."""
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
def superlink(folder: Path, port: int, database: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A SuperLink that listens, and the operator's connection ``loopback`` to it; ``database``: empty is in memory."""
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink.loopback]\naddress = "127.0.0.1:{port}"\ninsecure = true\n', encoding="utf-8"
    )
    words = ["flower-superlink", "--insecure", "--port", str(port), "--disable-runtime-dependency-installation"]
    words += ["--database", database] if database else []
    with running(folder, "superlink", words) as process:
        await_port(port)
        yield process


@contextmanager
def supernode(
    folder: Path, name: str, superlink_port: int, port: int, config: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A SuperNode with this node configuration."""
    words = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{superlink_port}", "--port", str(port)]
    with running(folder, name, [*words, "--node-config", config]) as process:
        yield process


def flwr_run(folder: Path, settings: Mapping[str, object], app: Path = ROOT) -> None:
    """``flwr run`` to its end.

    Raises:
        RunStopped: the run has no summary; the message holds the ends of all logs.
    """
    overrides = folder / "overrides.toml"
    overrides.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()), encoding="utf-8")
    words = ["flwr", "run", str(app), "loopback", "--stream", "--run-config", str(overrides)]
    with running(folder, "flwr-run", words) as process:
        process.wait(timeout=PATIENCE_SECONDS)
    if not (Path(str(settings["run_dir"])) / "summary.json").exists():
        logs = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(folder.glob("*.log")))
        raise RunStopped(f"the federation did not end well\n{logs}")


@contextmanager
def resident(groups: Sequence[int]) -> Iterator[dict[str, float]]:
    """MB (2^20) of these process groups, read five times a second (Linux; 0 elsewhere).

    Yields:
        ``first``: the first group's at its first reading; ``first_peak``, ``peak``: the peaks of the first group and of
        all together. Shared pages count for each process that maps them.
    """
    seen, over = {"first": 0.0, "first_peak": 0.0, "peak": 0.0}, threading.Event()

    def look() -> None:
        while True:
            held = _held(groups)
            seen["first"] = seen["first"] or held[groups[0]]
            seen["first_peak"] = max(seen["first_peak"], held[groups[0]])
            seen["peak"] = max(seen["peak"], sum(held.values()))
            if over.wait(0.2):
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _held(groups: Sequence[int]) -> dict[int, float]:
    held = dict.fromkeys(groups, 0.0)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):  # it may be gone by now
            told = stat.read_text().rpartition(")")[2].split()  # after the name: state, parent, group, ...
            if int(told[2]) in held:
                held[int(told[2])] += int(told[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return held


def cpu_seconds(pid: int) -> float:
    """What this process has used so far, its children not counted (Linux)."""
    told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")


def await_port(port: int) -> None:
    """Until somebody listens there.

    Raises:
        RunStopped: nobody does within two minutes.
    """
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise RunStopped(f"nothing listens on port {port}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
