"""Stop-and-resume ≡ uninterrupted, whenever the server is killed; what a resumed run refuses; one writer a folder."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from client.app import make_app
from server.app import run_federation
from server.resume import open_run, standing_of
from server.runs import RunFolder
from simulations.inprocess import InProcessGrid
from simulations.partition import load_rows, partition, write_sites
from spact_models.checkpoint import load_checkpoint
from spact_models.errors import RunStopped, UserError
from spact_models.run_config import load_settings

ROOT = Path(__file__).resolve().parents[2]
MORE = {"simulation.sites": 2, "simulation.unlabelled_sites": 1, "rounds.min_sites": 2, "rounds.minimax": 3}
WHOLE: dict[str, Path] = {}
VERDICTS = ("kind", "round", "phase", "void", "metrics")

# A whole federation in a process of its own that kills itself, as `kill -9` would, at a chosen point of round 3.
VICTIM = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from client.app import make_app
from server.app import run_federation
from server.resume import open_run
from simulations.inprocess import InProcessGrid
from spact_models import files
from spact_models.run_config import load_settings
import server.runs

told = json.loads(sys.argv[1])
point, count = told["point"], 0
def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Mortal(InProcessGrid):
    def push_messages(self, messages):
        messages = list(messages)
        if point == "configure" and any(m.metadata.group_id == "3" for m in messages):
            die()
        return super().push_messages(messages)
    def _answer(self, message):
        global count
        reply = super()._answer(message)
        if message.metadata.group_id == "3" and message.metadata.message_type == "train":
            count += 1
            if point == "aggregation" and count == 2:  # one update is added, the other has just arrived
                die()
        return reply

flush = os.fsync
def fsync(descriptor):
    name = os.readlink(f"/proc/self/fd/{descriptor}")
    if point == "checkpoint" and ".round-0003" in name:
        os.truncate(name, os.path.getsize(name) // 2)  # half of it reached the disk
        die()
    flush(descriptor)
files.os.fsync = fsync

record = server.runs.RunFolder.record
def record_or_die(self, line):
    if (line.round, line.kind) == (3, "train"):
        if point == "before its line":
            die()
        if point == "in its line":
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write('{"bytes_down": 12, "by')
            die()
    record(self, line)
    if point == "evaluation" and (line.round, line.kind) == (3, "train"):
        die()
server.runs.RunFolder.record = record_or_die

settings = load_settings(told["settings"])
with open_run(settings) as folder:
    nodes = [{"site": file} for file in told["sites"]]
    run_federation(Mortal(make_app(), nodes, settings.flat()), settings, folder, quiet=True)
"""


def deal(squares, folder, fast, **changes):
    """Fresh sites in ``folder``; the settings and the site files."""
    settings = load_settings({**fast, **MORE, "run_dir": str(folder / "run"), **changes})
    shares = partition(load_rows(squares, settings.simulation, 0), settings.simulation, 0)
    files = write_sites(folder / "sites", shares, 1, squares.parent / "resume-cache")
    return settings, [str(file) for file in files]


def federate(settings, files, folder=None, grid=InProcessGrid):
    with folder or open_run(settings) as folder:
        return run_federation(
            grid(make_app(), [{"site": f} for f in files], settings.flat()), settings, folder, quiet=True
        )


def verdicts(folder):
    """What each line says of the round, without times."""
    lines = RunFolder.open(folder).history()
    for line in lines:
        line["metrics"] = {
            name: value for name, value in line["metrics"].items() if name not in ("seconds", "peak_rss_mb")
        }
    return [[line[key] for key in VERDICTS] for line in lines]


@pytest.fixture
def whole(squares, tmp_path_factory, fast):
    """Strategy name -> the run folder of a run that nothing interrupted; made once each."""

    def run(name):
        if name not in WHOLE:
            folder = tmp_path_factory.mktemp(f"whole-{name}")
            settings, files = deal(squares, folder, fast, **{"strategy.name": name})
            federate(settings, files)
            WHOLE[name] = folder / "run"
        return WHOLE[name]

    return run


def same_weights(ours, theirs, server_round=4):
    first, second = (load_checkpoint(RunFolder.open(run).checkpoints()[server_round]).tensors for run in (ours, theirs))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def kill(settings, files, point):
    """Run the federation in a process that kills itself there."""
    told = {"settings": settings.flat(), "sites": files, "point": point}
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, json.dumps(told)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


POINTS = {  # -> the last complete round that the dead run's folder holds
    "configure": 2,
    "aggregation": 2,
    "checkpoint": 2,
    "before its line": 3,
    "in its line": 3,
}


OFTEN = ("checkpoint", "in its line")  # the other moments only with `pytest -m slow`


@pytest.mark.parametrize(
    "point", [pytest.param(point, marks=() if point in OFTEN else pytest.mark.slow) for point in POINTS]
)
def test_killed_at_any_moment_and_resumed_is_uninterrupted(squares, tmp_path, fast, whole, point):
    """Bit for bit, with Adam's moments at the server, a teacher, an unlabelled site, and one checkpoint kept."""
    changes = {"strategy.name": "fedadam", "rounds.keep_checkpoints": 1}
    settings, files = deal(squares, tmp_path, fast, **changes)
    kill(settings, files, point)
    dead = tmp_path / "run"
    assert list(RunFolder.open(dead).checkpoints()) == [POINTS[point]]
    federation = RunFolder.open(dead).federation

    resumed, _ = deal(squares, tmp_path / "elsewhere", fast, **changes, run_dir=str(dead), resume=True)
    federate(resumed, files)
    assert same_weights(dead, whole("fedadam"))
    assert verdicts(dead) == verdicts(whole("fedadam"))
    assert list(RunFolder.open(dead).checkpoints()) == [4]
    assert RunFolder.open(dead).federation == federation
    assert not list(dead.glob("**/*.tmp"))
    (entry,) = json.loads((dead / "settings.json").read_text())["resumed"]
    assert (entry["after_round"], sorted(entry["changed"])) == (POINTS[point], ["resume"])


class Stopping(InProcessGrid):
    """Ends the run with an error when the request of (round, kind) is sent."""

    at = ("3", "train")

    def push_messages(self, messages):
        messages = list(messages)
        if messages and (messages[0].metadata.group_id, messages[0].metadata.message_type) == self.at:
            raise ConnectionError("the SuperLink is gone")
        return super().push_messages(messages)


@pytest.mark.parametrize("name", ["fedavg", "fedavgm"])
def test_every_server_step_resumes_exactly(squares, tmp_path, fast, whole, name):
    settings, files = deal(squares, tmp_path, fast, **{"strategy.name": name})
    with pytest.raises(ConnectionError):
        federate(settings, files, grid=Stopping)
    federate(load_settings({**settings.flat(), "resume": True}), files)
    assert same_weights(tmp_path / "run", whole(name))
    assert verdicts(tmp_path / "run") == verdicts(whole(name))


@pytest.mark.parametrize("at", [("1", "train"), ("4", "train"), ("4", "evaluate")])
def test_stopped_before_any_round_and_resumed_is_uninterrupted(squares, tmp_path, fast, whole, monkeypatch, at):
    """Before the first checkpoint, in the last round, and in its evaluation alone."""
    monkeypatch.setattr(Stopping, "at", at)
    settings, files = deal(squares, tmp_path, fast)
    with pytest.raises(ConnectionError):
        federate(settings, files, grid=Stopping)
    federate(load_settings({**settings.flat(), "resume": True}), files)
    assert same_weights(tmp_path / "run", whole("fedavg"))
    assert verdicts(tmp_path / "run") == verdicts(whole("fedavg"))


def test_void_rounds_are_counted_across_an_interruption(squares, tmp_path, fast):
    settings, files = deal(squares, tmp_path, fast, **{"rounds.max_void_rounds": 2})
    lost = {Path(files[1]).parent / "manifest.csv": Path(files[1]).parent / "manifest.lost"}

    class Losing(Stopping):
        """Site 2's table disappears before round 2, and the server dies before round 3."""

        def push_messages(self, messages):
            messages = list(messages)
            if messages and messages[0].metadata.group_id == "2":
                for there, away in lost.items():
                    there.rename(away)
            return super().push_messages(messages)

    with pytest.raises(ConnectionError):
        federate(settings, files, grid=Losing)
    # the site cannot be met again, but one is enough to begin with; its round is void, the second one in a row
    resumed = load_settings({**settings.flat(), "resume": True})
    with pytest.raises(RunStopped, match="1 of the 2 connected sites could join"):
        federate(resumed, files)
    for there, away in lost.items():
        away.rename(there)
    with open_run(resumed) as folder:
        standing = standing_of(folder, resumed)
    assert (standing.trained, standing.void_rounds) == (2, 1)
    assert standing.weights.keys() == load_checkpoint(RunFolder.open(tmp_path / "run").checkpoints()[1]).tensors.keys()
    federate(resumed, files)
    lines = [line for line in RunFolder.open(tmp_path / "run").history() if line["kind"] == "train"]
    assert [(line["round"], line["void"]) for line in lines] == [(1, False), (2, True), (3, False), (4, False)]


# ---- what is refused


@pytest.fixture
def stopped(squares, tmp_path, fast, monkeypatch):
    monkeypatch.setattr(Stopping, "at", ("2", "train"))
    settings, files = deal(squares, tmp_path, fast, **{"strategy.name": "fedadam"})
    with pytest.raises(ConnectionError):
        federate(settings, files, grid=Stopping)
    return settings, files


def test_what_cannot_be_resumed_says_why_and_touches_nothing(stopped, tmp_path):
    settings, files = stopped
    run = tmp_path / "run"

    def resume(**changes):
        return federate(load_settings({**settings.flat(), "resume": True, **changes}), files)

    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(
        UserError, match=r"game\.omega = 0\.5, but the run to resume was begun with 1\.0: .*Set game\.omega"
    ):
        resume(**{"game.omega": 0.5, "strategy.learning_rate": 0.5})  # the first key that differs
    with pytest.raises(UserError, match=r"rounds\.minimax = 9, but the run to resume was begun with 3"):
        resume(**{"rounds.minimax": 9})
    with pytest.raises(UserError, match=r"holds an existing run, which is never overwritten.*resume = true"):
        open_run(settings)
    with pytest.raises(UserError, match="resume = True, needs run_dir"):
        open_run(load_settings({"resume": True}))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    state = run / "resume" / "state-0001.safetensors"
    kept = state.read_bytes()
    state.unlink()
    with pytest.raises(UserError, match=r"state-0001\.safetensors: missing, and strategy\.name = 'fedadam' cannot"):
        resume()
    state.write_bytes(kept)
    checkpoint = run / "checkpoints" / "round-0001.safetensors"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])  # a bad disk, not a crash
    with pytest.raises(UserError, match=r"round-0001\.safetensors: not a checkpoint that can be read"):
        resume()
    checkpoint.write_bytes(whole)
    may_change = {"rounds.timeout_seconds": 77.0, "watch.log_format": "json", "simulation.sites_at_once": 1}
    result = resume(**may_change)  # what keeps a run going, and no more
    assert len([record for record in result.rounds if record.kind == "train"]) == 4
    described = json.loads((run / "settings.json").read_text())
    assert described["resumed"][-1]["changed"]["rounds.timeout_seconds"] == [settings.rounds.timeout_seconds, 77.0]
    RunFolder.open(run).write_summary({})
    assert not (run / "resume").exists()
    with pytest.raises(UserError, match="its run is complete"):
        resume()


def test_a_run_that_lost_its_last_checkpoint_goes_on_from_the_one_before(squares, tmp_path, fast, whole):
    settings, files = deal(squares, tmp_path, fast)
    with pytest.raises(ConnectionError):
        federate(settings, files, grid=Stopping)  # before round 3
    (tmp_path / "run" / "checkpoints" / "round-0002.safetensors").unlink()
    federate(load_settings({**settings.flat(), "resume": True}), files)
    assert same_weights(tmp_path / "run", whole("fedavg"))
    assert verdicts(tmp_path / "run") == verdicts(whole("fedavg"))


def test_resume_where_nothing_has_begun_begins(squares, tmp_path, fast, whole):
    settings, files = deal(squares, tmp_path, fast, resume=True)
    federate(settings, files)
    assert same_weights(tmp_path / "run", whole("fedavg"))


def test_one_writer_a_folder(tmp_path):
    """Two processes: while one holds the run, the other is refused; when it is killed, the folder is free at once."""
    held = (
        "import sys, time; from pathlib import Path; from server.runs import RunFolder\n"
        "folder = RunFolder(Path(sys.argv[1])); folder.begin({}); print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", held, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process writes to it"):
            RunFolder.reopen(tmp_path / "run")
        RunFolder.open(tmp_path / "run")  # reading is free
    finally:
        holder.kill()
        holder.wait()
    RunFolder.reopen(tmp_path / "run").close()
    with RunFolder.reopen(tmp_path / "run"):
        pass


@pytest.mark.slow
def test_a_disk_that_fills_up_in_a_real_run_ends_it_and_the_last_good_round_is_resumed(squares, tmp_path, fast, whole):
    """A file size limit stands for the full disk: below it lies what round 1 writes, above it what Adam adds."""
    settings, files = deal(squares, tmp_path, fast)
    code = VICTIM.replace("settings = load", "import resource\nsettings = load", 1).replace(
        "def record_or_die(self, line):", "def record_or_die(self, line):\n"
        "    if line.round == 2:\n        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n", 1,
    )  # fmt: skip
    told = {"settings": settings.flat(), "sites": files, "point": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(told)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot be written (File too large). Free or mend that disk" in done.stderr
    assert "what was written before is whole" in done.stderr
    federate(load_settings({**settings.flat(), "resume": True}), files)
    assert same_weights(tmp_path / "run", whole("fedavg"))
