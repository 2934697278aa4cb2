"""``fedspact simulate --resume``: a simulation that is killed goes on in its own folder and ends as if it were not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fedspact import main
from server.runs import RunFolder
from spact_models.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def words(squares, out, fast):
    sets = [word for key, value in fast.items() for word in ("--set", f"{key}={value}")]
    return ["simulate", "--data", str(squares), "--out", str(out), "--sites", "2", "--no-judge", *sets]


def last(run):
    return load_checkpoint(list(RunFolder.open(run).checkpoints().values())[-1]).tensors


@pytest.mark.parametrize(("how", "threads", "status"), [(signal.SIGKILL, "1", -9), (signal.SIGINT, "2", 130)])
def test_killed_or_interrupted_and_resumed_is_uninterrupted(squares, tmp_path, fast, capsys, how, threads, status):
    """With two threads the two sites are at work at the same time; Ctrl-C is status 130 and loses nothing."""
    fast |= {"rounds.minimax": 3, "strategy.name": "fedadam", "strategy.learning_rate": 0.01}
    assert main(words(squares, tmp_path / "whole", fast)) == 0
    run = tmp_path / "run"
    # Ctrl-C is ignored where pytest ignores it. No preexec_fn: what gRPC has left in this process dies of a real fork.
    heard = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, str(ROOT / "fedspact.py"), *words(squares, run, fast)]
    with (tmp_path / "log").open("wb") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        victim = subprocess.Popen([sys.executable, "-c", heard, *command], stdout=log, stderr=log, env=environment)
    while victim.poll() is None and not (run / "checkpoints" / "round-0002.safetensors").exists():
        time.sleep(0.005)
    victim.send_signal(how)
    assert victim.wait() == status, (tmp_path / "log").read_text()
    onward = f"interrupted; what was written before is whole\ngo on with: fedspact simulate --resume {run}\n"
    assert (onward in (tmp_path / "log").read_text()) == (how == signal.SIGINT)
    assert not (run / "summary.json").exists()

    assert main(["simulate", "--resume", str(run), "--set", "game.omega=0.5"]) == 2
    assert "game.omega = 0.5, but the run to resume was begun with 1.0" in capsys.readouterr().err
    assert main(["simulate", "--resume", str(run), "--views", str(squares)]) == 2
    assert "--views: cannot be given with --resume" in capsys.readouterr().err
    assert main(["simulate", "--resume", str(run)]) == 0  # begun with --no-judge, and so it ends
    said = capsys.readouterr()
    assert said.out == f"run folder: {run}\nnext: fedspact evaluate {run}\n"
    assert "judge" not in said.err
    ours, theirs = last(run), last(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    rounds = [(line["kind"], line["round"]) for line in RunFolder.open(run).history()]
    assert rounds == [("train", 1), ("train", 2), ("train", 3), ("train", 4), ("evaluate", 4)]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["rounds"], summary["utility"]["raw"]) == (4, None)
    assert main(["simulate", "--resume", str(run)]) == 2
    assert "its run is complete" in capsys.readouterr().err


def test_resume_and_data_exclude_each_other_and_a_foreign_folder_is_refused(squares, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "--resume", str(tmp_path), "--data", str(squares)])
    assert ended.value.code == 2
    assert main(["simulate", "--resume", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
    with RunFolder(tmp_path / "alone") as folder:
        folder.begin({})
    assert main(["simulate", "--resume", str(tmp_path / "alone")]) == 2
    assert "holds no simulated sites" in capsys.readouterr().err
