"""Real processes on loopback: a SuperLink, SuperNodes and ``flwr run``, each in its own process group."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from server.runs import RunFolder
from simulations.benchmarks.processes import free_ports
from simulations.partition import load_rows, partition, write_sites
from spact_models.checkpoint import load_checkpoint
from spact_models.run_config import load_settings

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = Path(sys.executable).parent  # flwr and the flower-* commands of this environment
PATIENCE_SECONDS = 420  # many processes import torch one after the other; a busy machine takes its time


class Loopback:
    """One federation's processes in a folder: ``NAME.log`` is what each of them says."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.running: dict[str, subprocess.Popen] = {}
        self.link_port, *self.node_ports = free_ports(13)
        self.environment = {
            **os.environ,
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}",  # a SuperLink starts its helpers by name
        }
        (folder / "home").mkdir()
        self.connect()

    def connect(self, ca: Path | None = None) -> None:
        """Say how the operator reaches the SuperLink: with TLS where there is a CA."""
        how = f'root-certificates = "{ca}"' if ca else "insecure = true"
        address = f'[superlink.loopback]\naddress = "127.0.0.1:{self.link_port}"\n{how}\n'
        (self.folder / "home" / "config.toml").write_text(address)

    def start(self, name: str, *words: str, cwd: Path | None = None) -> subprocess.Popen:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [str(COMMANDS / words[0]), *words[1:]],
                cwd=cwd or self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.running[name]

    def link(self, *more: str) -> None:
        """Start the SuperLink, and wait until it listens."""
        words = ("--insecure", "--port", str(self.link_port), "--disable-runtime-dependency-installation", *more)
        self.start_link("flower-superlink", *words)

    def start_link(self, *words: str) -> None:
        """Start the SuperLink by a command of one's own, and wait until it listens."""
        process = self.start("link", *words)
        self.until(lambda: listens(self.link_port) or process.poll() is not None, "the SuperLink listens")

    def do(self, *words: str) -> None:
        """Run a command to its end, which must be a good one."""
        process = self.start(words[0], *words)
        self.until(lambda: process.poll() is not None, f"{words} ends")
        assert process.returncode == 0, self.logs()

    def node(
        self,
        number: int,
        file: Path | None = None,
        port: int | None = None,
        inside: tuple[str, str] | None = None,
        config: str = "",
    ) -> subprocess.Popen:
        """Start a SuperNode.

        Args:
            port: of a proxy before the SuperLink, if there is one.
            inside: a network namespace, and this machine's address as seen from there.
            config: the node's own configuration, instead of a site file.
        """
        namespace, host = inside or ("", "127.0.0.1")
        words = ["flower-supernode", "--insecure", "--superlink", f"{host}:{port or self.link_port}"]
        words += ["--port", str(self.node_ports[number]), "--node-config", config or f"site='{file}'"]
        if namespace:
            words = ["/usr/bin/env", "ip", "netns", "exec", namespace, str(COMMANDS / words[0]), *words[1:]]
        return self.start(f"node-{number}", *words)

    def await_nodes(self, count: int) -> None:
        """Until so many SuperNodes are known to the SuperLink."""
        activated = re.compile(r"\[Fleet.ActivateNode\] Activated")
        self.until(lambda: len(activated.findall(self.shown("link"))) >= count, f"{count} SuperNodes are activated")

    def begin(self, settings: dict[str, object], name: str = "flwr-run", app: Path = ROOT) -> subprocess.Popen:
        """``flwr run`` with these settings, streaming to ``NAME.log``."""
        config = self.folder / f"{name}.toml"
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        return self.start(name, "flwr", "run", ".", "loopback", "--stream", "--run-config", str(config), cwd=app)

    def shown(self, name: str = "flwr-run") -> str:
        """What a process has shown, without colours."""
        return re.sub(r"\x1b\[\d*m", "", (self.folder / f"{name}.log").read_text())

    def run(self, settings: dict[str, object]) -> str:
        """``flwr run`` to its end; returns what it shows, without colours."""
        (self.folder / "flwr-run.log").unlink(missing_ok=True)
        process = self.begin(settings)
        self.until(lambda: process.poll() is not None, "flwr run ends")
        assert process.returncode == 0, self.logs()
        return self.shown()

    def until(self, true: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait for a state of the processes or their files; the test fails, with all logs, when it does not come."""
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                pytest.fail(f"waited in vain: {what}\n{self.logs()}")
            time.sleep(0.1)

    def clientapps(self, name: str) -> list[int]:
        """The processes in which a SuperNode runs the ClientApp right now."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it may be gone by now
                group = int(stat.read_text().rpartition(")")[2].split()[2])
                words = (stat.parent / "cmdline").read_bytes()
                if group == self.running[name].pid and b"flwr-clientapp" in words:
                    found.append(int(stat.parent.name))
        return found

    def send(self, name: str, number: signal.Signals) -> None:
        """A signal to a process and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.running[name].pid, number)

    def kill(self, name: str) -> None:
        self.send(name, signal.SIGKILL)
        self.running.pop(name).wait()

    def logs(self) -> str:
        """The last lines of every process, for messages."""
        return "\n".join(f"--- {log.name}\n{log.read_text()[-4000:]}" for log in sorted(self.folder.glob("*.log")))

    def stop(self) -> None:
        """Ask every process to end; after a while end its whole group."""
        for name in reversed(self.running):
            self.send(name, signal.SIGCONT)
            self.send(name, signal.SIGTERM)
        for name, process in self.running.items():
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            self.send(name, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def loopback(tmp_path_factory):
    """Makes federations of processes; all of them end with the module."""
    made = []

    def make(name: str) -> Loopback:
        made.append(Loopback(tmp_path_factory.mktemp(name)))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture(scope="session")
def deal(squares):
    """``deal(folder, count, unlabelled)``: site files of the squares dealt out at random; their cache lies beside."""

    def deal(folder: Path, count: int, unlabelled: int = 0) -> list[Path]:
        config = load_settings({"simulation.sites": count}).simulation
        shares = partition(load_rows(squares, config, 0), config, 0)
        return write_sites(folder / "sites", shares, unlabelled, folder / "cache")

    return deal


@pytest.fixture(scope="session")
def distance():
    """``distance(run, round, other, round)``: relative L2 over all weights of two checkpoints.

    Not the largest difference: Adam turns a rounding of a gradient near 0 into a whole step of one weight.
    """

    def distance(run: RunFolder, number: int, other: RunFolder, its_number: int) -> float:
        ours, theirs = run.checkpoints()[number], other.checkpoints()[its_number]
        a, b = load_checkpoint(ours).tensors, load_checkpoint(theirs).tensors
        assert a.keys() == b.keys()
        apart = sum(float((a[name] - b[name]).double().square().sum()) for name in a)
        return (apart / sum(float(value.double().square().sum()) for value in b.values())) ** 0.5

    return distance
