"""What happens in the field, with real processes on loopback: sites that die, hang, join late or can read no video, and
a SuperLink that is killed. The run ends with a result while the quorum holds."""

import json
import os
import signal
from contextlib import suppress

from client.app import make_app
from client.video.rows import read_rows, write_rows
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


def blind(file):
    """None of this site's videos can be read."""
    manifest = file.parent / "manifest.csv"
    rows = read_rows(manifest)
    for number, row in enumerate(rows):
        broken = file.parent / f"{number}.mp4"
        broken.write_bytes(b"not a video")
        object.__setattr__(row, "path", broken)
    write_rows(rows, manifest)


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


def test_sites_that_die_hang_see_nothing_or_come_late_do_not_end_the_run(loopback, squares, fast, tmp_path):
    """In round 1 site 2 is killed, site 3's training freezes and site 4 can read no video; site 5 comes afterwards.

    Flower notices the killed one by its heartbeat, the frozen one costs the deadline. It thaws: its late reply is
    thrown away, and it is back.
    """
    here, run = loopback("faults"), tmp_path / "run"
    files = deal(squares, tmp_path, 5)
    blind(files[3])
    here.link()
    for number in range(4):
        here.node(number, files[number])
    here.await_nodes(4)
    process = here.begin({**fast, "rounds.timeout_seconds": 90.0, "rounds.min_sites": 1, "run_dir": str(run)})
    here.until(lambda: works(run, 1, "site-2") and works(run, 1, "site-3"), "round 1 is asked")
    here.kill("node-1")
    frozen = set()

    def freeze() -> bool:
        """Again and again: the process that introduced the site may linger while the one that trains starts."""
        for each in here.clientapps("node-2"):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGSTOP)
                frozen.add(each)
        return bool(trained(run))

    here.until(freeze, "round 1 ends")
    for each in frozen:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGCONT)
    here.node(4, files[4])
    here.until(lambda: process.poll() is not None, "flwr run ends")

    assert (run / "summary.json").exists(), here.logs()
    first, *_, last = trained(run)
    assert [line["round"] for line in trained(run)] == [1, 2, 3]
    assert [site["name"] for site in first["sites"]] == ["site-1"], here.logs()
    reasons = {drop["name"]: drop["reason"] for drop in first["dropped"]}
    assert reasons.keys() == {"site-2", "site-3", "site-4"}
    assert "Node Unavailable" in reasons["site-2"] or reasons["site-2"] == "no valid reply within 90 s"
    assert reasons["site-3"] == "no valid reply within 90 s"
    assert "unreadable videos = " in reasons["site-4"]
    assert {"site-1", "site-3", "site-5"} <= {site["name"] for site in last["sites"]}, here.logs()
    shown = here.shown()
    late = ("a reply came after its deadline and is ignored", "its late request has lapsed without a reply")
    assert any(f"site-3: {end}" in shown for end in late), here.logs()  # the second one on a very busy machine
    assert ".mp4" not in shown  # which videos a site cannot read stays there


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
