"""What happens in the field, with real processes on loopback: a SuperLink that is killed and comes back."""

import json

from client.app import make_app
from server.app import run_federation
from server.runs import METRICS, SETTINGS, RunFolder
from server.status import STATUS
from simulations.inprocess import InProcessGrid
from simulations.partition import load_rows, partition, write_sites
from spact_models.checkpoint import load_checkpoint
from spact_models.run_config import load_settings


def deal(squares, folder, count):
    config = load_settings({"simulation.sites": count}).simulation
    return write_sites(folder / "sites", partition(load_rows(squares, config, 0), config, 0), 0, folder / "cache")


def trained(run):
    """The train rounds so far; none before the run has begun."""
    if not ((run / SETTINGS).exists() and (run / METRICS).exists()):
        return []
    return [line for line in RunFolder.open(run).history() if line["kind"] == "train"]


def works(run, server_round, site):
    """Whether the site has been asked in this round and has not answered yet."""
    if not (run / STATUS).exists():
        return False
    told = json.loads((run / STATUS).read_text())
    return told["round"] == server_round and told["sites"].get(site, {}).get("state") == "working"


def test_a_superlink_that_is_killed_comes_back_and_the_run_is_resumed(loopback, squares, fast, tmp_path):
    """flwr 1.41 keeps the nodes in its database and gives up the run; `flwr run` with resume goes on with it."""
    here, run = loopback("restart"), tmp_path / "run"
    files = deal(squares, tmp_path, 1)
    database = ("--database", str(here.folder / "link.db"))
    here.link(*database)
    here.node(0, files[0])
    chosen = {
        **fast, "rounds.minimax": 1, "rounds.timeout_seconds": 300.0, "run_dir": str(run), "resume": True,
        "strategy.name": "fedadam", "strategy.learning_rate": 0.01,
    }  # fmt: skip
    process = here.begin(chosen)
    here.until(lambda: works(run, 2, "site-1"), "round 2 is asked")
    federation = RunFolder.open(run).federation
    here.kill("link")
    here.until(lambda: process.poll() is not None, "flwr run notices")
    assert not (run / "summary.json").exists()
    here.link(*database)
    here.run(chosen)

    assert (run / "summary.json").exists(), here.logs()
    resumed = RunFolder.open(run)
    assert resumed.federation == federation
    lines = [(line["kind"], line["round"], len(line["sites"])) for line in resumed.history()]
    assert lines == [("train", 1, 1), ("train", 2, 1), ("evaluate", 2, 1)], here.logs()
    assert json.loads((run / SETTINGS).read_text())["resumed"][0]["after_round"] == 1
    settings = load_settings({**chosen, "run_dir": "", "resume": False})
    twin_files = deal(squares, tmp_path / "twin", 1)
    with RunFolder(tmp_path / "twin" / "run") as twin:
        run_federation(
            InProcessGrid(make_app(), [{"site": str(twin_files[0])}], settings.flat()), settings, twin, quiet=True
        )
    ours, theirs = (load_checkpoint(folder.checkpoints()[2]).tensors for folder in (resumed, twin))
    apart = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in ours)
    assert (apart / sum(float(value.double().square().sum()) for value in theirs.values())) ** 0.5 < 1e-4
