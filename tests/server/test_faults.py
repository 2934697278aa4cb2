"""What happens in the field, with real processes: sites die, hang, join late, hold nothing, lie, are cut off."""

import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from client.app import make_app
from server.app import run_federation
from server.runs import METRICS, SETTINGS, RunFolder
from server.status import STATUS
from simulations.inprocess import InProcessGrid
from simulations.partition import load_rows, partition, write_sites
from spact_models.run_config import load_settings

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


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


def test_a_superlink_that_is_killed_comes_back_and_the_run_is_resumed(loopback, distance, deal, fast, tmp_path):
    """flwr 1.41 keeps the nodes in its database and gives up the run; `flwr run` with resume goes on with it."""
    here, run = loopback("restart"), tmp_path / "run"
    files = deal(tmp_path, 1)
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
    twin_files = deal(tmp_path / "twin", 1)
    with RunFolder(tmp_path / "twin" / "run") as twin:
        run_federation(
            InProcessGrid(make_app(), [{"site": str(twin_files[0])}], settings.flat()), settings, twin, quiet=True
        )
    assert distance(resumed, 2, twin, 2) < 1e-4


def rounds_of(run, kind="train"):
    return [line for line in RunFolder.open(run).history() if line["kind"] == kind]


def replied(line):
    return {site["name"] for site in line["sites"]}


def left_out(line):
    return {site["name"]: site["reason"] for site in line["dropped"]}


def test_sites_that_die_hang_join_late_or_hold_nothing_readable(loopback, deal, fast, tmp_path):
    """Two healthy sites are the quorum; everything else happens to the other four, and the run has its result."""
    here, run = loopback("field"), tmp_path / "run"
    files = dict(zip(("dies", "hangs", "healthy", "fine", "blind", "late"), deal(tmp_path, 6), strict=True))
    names = {who: file.parent.name for who, file in files.items()}
    make_unreadable(files["blind"], tmp_path)
    here.link()
    for number, who in enumerate(("dies", "hangs", "healthy", "fine", "blind")):
        here.node(number, files[who])
    here.await_nodes(5)
    process = here.begin({
        **fast, "rounds.warmup": 2, "rounds.minimax": 3, "rounds.min_sites": 2, "rounds.timeout_seconds": 120.0,
        "run_dir": str(run),
    })  # fmt: skip
    here.until(lambda: works(run, 1, names["dies"]) and here.clientapps("node-0"), "the first site is at work")
    here.kill("node-0")
    here.until(lambda: works(run, 2, names["hangs"]), "round 2 is asked")
    here.node(5, files["late"])
    stopped = set()

    def held_until_round_2_is_over():
        """Its SuperNode goes on saying that it lives; whatever it starts for this round stands still."""
        for each in here.clientapps("node-1"):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGSTOP)
                stopped.add(each)
        return len(trained(run)) >= 2

    here.until(held_until_round_2_is_over, "round 2 ends without it")
    for each in stopped:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGCONT)
    here.until(lambda: process.poll() is not None, "flwr run ends", 900)

    assert (run / "summary.json").exists(), here.logs()
    lines = rounds_of(run)
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5]
    assert not any(line["void"] for line in lines), here.logs()
    for line in lines:
        assert {names["healthy"], names["fine"]} <= replied(line), here.logs()
        assert names["blind"] not in replied(line)
        assert names["dies"] not in replied(line)
    assert "unreadable videos = 2 of 2 (100.0%), at most 5.0% are allowed" in left_out(lines[0])[names["blind"]]
    assert ".mp4" not in left_out(lines[0])[names["blind"]]  # why, but no file name
    assert "Node Unavailable" in left_out(lines[0])[names["dies"]]
    assert "no valid reply within 120 s" in left_out(lines[1])[names["hangs"]]
    assert any(names["hangs"] in replied(line) for line in lines[2:]), "it is taken in again"
    assert not any(names["late"] in replied(line) for line in lines[:1])
    assert any(names["late"] in replied(line) for line in lines[2:]), "who joins late takes part"
    shown = here.shown()
    late = f"{names['hangs']}: no reply within 120 s; a later one is ignored"
    assert late in shown
    # it had 30 s more to answer in; after that Flower itself forgets the request
    ignored = f"{names['hangs']}: a reply came after its deadline and is ignored"
    assert ignored in shown or f"{names['hangs']}: its late request has lapsed without a reply" in shown
    assert "Traceback" not in shown


def make_unreadable(file, folder):
    """Give a site a manifest of files that are no videos."""
    broken = folder / "sites" / file.parent.name / "broken"
    broken.mkdir()
    manifest = file.parent / "manifest.csv"
    lines = manifest.read_text().splitlines()
    column = lines[0].split(",").index("path")
    for number, line in enumerate(lines[1:], start=1):
        cells = line.split(",")
        cells[column] = str(broken / f"{number}.mp4")
        (broken / f"{number}.mp4").write_bytes(b"this is no video")
        lines[number] = ",".join(cells)
    manifest.write_text("\n".join(lines) + "\n")


LIES = {  # node by node, what is wrong with the reply of round 1 and of round 2, and the server's words for it
    "numbers": (("nan", "holds nan"), ("inf", "holds inf")),
    "arrays": (("odd key", "unexpected privacy.w"), ("shape", "must be (")),
    "claims": (("negative", "examples.action = -1"), ("absurd", "examples.action = 1000000000000")),
    "sizes": (("oversize", "must be ("), ("replayed", "a stale reply of round")),
}
BUNDLE = ("spact_models/**/*.py", "client/**/*.py", "server/**/*.py")


def test_sites_that_lie_are_left_out_one_by_one_and_the_honest_one_decides(loopback, distance, deal, fast, tmp_path):
    """The honest site runs the real ClientApp; each liar spoils a reply of the real form, in a process of its own."""
    here, run = loopback("liars"), tmp_path / "run"
    (file,) = deal(tmp_path, 1)
    app = tmp_path / "app"
    shutil.copytree(ROOT / "tests" / "server" / "liars", app)
    project = (ROOT / "pyproject.toml").read_text().replace('"client.app:app"', '"lying_sites:app"')
    shipped = ", ".join(f'"{pattern}"' for pattern in BUNDLE)
    assert shipped in project
    (app / "pyproject.toml").write_text(project.replace(shipped, '"*.py"'))
    here.link()
    here.node(0, file)
    for number, name in enumerate(LIES, start=1):
        here.node(number, config=f"name='{name}' lies='{','.join(lie for lie, _ in LIES[name])}'")
    here.await_nodes(1 + len(LIES))
    chosen = {
        **fast, "rounds.minimax": 1, "rounds.min_sites": 1, "rounds.timeout_seconds": 240.0, "run_dir": str(run),
        "wire.dtype": "float32",
    }  # fmt: skip
    process = here.begin(chosen, app=app)
    here.until(lambda: process.poll() is not None, "flwr run ends", 900)
    assert (run / "summary.json").exists(), here.logs()
    lines = rounds_of(run)
    for position, line in enumerate(lines):
        assert replied(line) == {"site-1"}, here.logs()
        reasons = left_out(line)
        for name, lies in LIES.items():
            assert lies[position][1] in reasons[name], here.logs()
    assert "Traceback" not in here.shown()

    twin_file = deal(tmp_path / "twin", 1)[0]  # alone, the honest site comes to the same weights
    settings = load_settings({**chosen, "run_dir": ""})
    with RunFolder(tmp_path / "twin" / "run") as twin:
        grid = InProcessGrid(make_app(), [{"site": str(twin_file)}], settings.flat())
        run_federation(grid, settings, twin, quiet=True)
    assert distance(RunFolder.open(run), 2, twin, 2) < 1e-4


SITE, HOST, WIRE = "10.213.7.2", "10.213.7.1", "fedspact"


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


@pytest.fixture
def namespace():
    """A network of its own for one site, and the veth pair that joins it to this machine."""
    if shutil.which("ip") is None or ip("netns", "add", WIRE).returncode != 0:
        pytest.skip("network namespaces are not to be had here (they need root and iproute2)")
    steps = (
        ("link", "add", f"{WIRE}0", "type", "veth", "peer", "name", f"{WIRE}1", "netns", WIRE),
        ("addr", "add", f"{HOST}/30", "dev", f"{WIRE}0"),
        ("link", "set", f"{WIRE}0", "up"),
        ("-n", WIRE, "addr", "add", f"{SITE}/30", "dev", f"{WIRE}1"),
        ("-n", WIRE, "link", "set", f"{WIRE}1", "up"),
        ("-n", WIRE, "link", "set", "lo", "up"),
    )
    try:
        for words in steps:
            if (made := ip(*words)).returncode != 0:
                pytest.skip(f"network namespaces are not to be had here: {made.stderr}")
        yield WIRE
    finally:
        ip("netns", "delete", WIRE)
        ip("link", "delete", f"{WIRE}0")


def test_a_site_whose_network_is_cut_is_left_out_and_taken_in_again(loopback, deal, fast, tmp_path, namespace):
    here, run = loopback("cut"), tmp_path / "run"
    cut, near = deal(tmp_path, 2)
    here.link("--host", "0.0.0.0")
    here.node(0, cut, inside=(namespace, HOST))
    here.node(1, near)
    here.await_nodes(2)
    process = here.begin({
        **fast, "rounds.warmup": 12, "rounds.minimax": 0, "rounds.min_sites": 1, "rounds.timeout_seconds": 60.0,
        "rounds.evaluate_every": 0, "run_dir": str(run),
    })  # fmt: skip
    away = cut.parent.name
    here.until(lambda: works(run, 1, away) and here.clientapps("node-0"), "the site is at work")
    assert ip("link", "set", f"{WIRE}0", "down").returncode == 0
    here.until(lambda: len(trained(run)) >= 1, "round 1 ends without it")
    assert ip("link", "set", f"{WIRE}0", "up").returncode == 0
    here.until(lambda: process.poll() is not None, "flwr run ends", 900)
    assert (run / "summary.json").exists(), here.logs()
    lines = rounds_of(run)
    assert len(lines) == 12
    assert away in left_out(lines[0])
    assert not any(line["void"] for line in lines)
    assert any(away in replied(line) for line in lines[1:]), here.logs()


def test_a_masked_sum_survives_a_site_that_dies(loopback, distance, squares, fast, tmp_path):
    """Four real sites deal their shares, one is killed at its work: the others' sum is opened with its shares."""
    here, run = loopback("masked"), tmp_path / "run"
    config = load_settings({"simulation.sites": 4}).simulation
    shares = partition(load_rows(squares, config, 0), config, 0)
    files = write_sites(tmp_path / "sites", shares, 0, tmp_path / "cache", keys=True)
    veto = yaml.safe_load(files[1].read_text()) | {"refuse": {"require_secure_aggregation": True, "min_sites": 3}}
    files[1].write_text(yaml.safe_dump(veto))
    here.link()
    for number, file in enumerate(files):
        here.node(number, file)
    here.await_nodes(4)
    chosen = {
        **fast, "rounds.minimax": 0, "rounds.min_sites": 3, "rounds.timeout_seconds": 120.0, "run_dir": str(run),
        "strategy.weighting": "equal", "secure.aggregation": True, "wire.dtype": "float32",
    }  # fmt: skip
    process = here.begin(chosen)
    here.until(lambda: works(run, 1, "site-4") and here.clientapps("node-3"), "the fourth site is at work")
    here.kill("node-3")
    here.until(lambda: process.poll() is not None, "flwr run ends")

    (first,) = rounds_of(run)
    assert not first["void"], here.logs()
    assert (first["secure"]["members"], first["secure"]["summed"], first["secure"]["lost"]) == (4, 3, ["site-4"])
    settings = load_settings({**chosen, "run_dir": "", "secure.aggregation": False})
    nodes = [{"site": str(file)} for file in write_sites(tmp_path / "twin", shares[:3], 0, tmp_path / "cache")]
    with RunFolder(tmp_path / "twin" / "run") as twin:
        run_federation(InProcessGrid(make_app(), nodes, settings.flat()), settings, twin, quiet=True)
    assert distance(RunFolder.open(run), 1, twin, 1) < 1e-4


def test_a_private_run_goes_on_without_the_site_that_demands_more_noise(loopback, deal, fast, tmp_path):
    """Groups of videos, over real processes: charged at server and sites, nothing told but that they took part."""
    here, run = loopback("private"), tmp_path / "run"
    files = deal(tmp_path, 3)
    files[2].write_text(yaml.safe_dump(yaml.safe_load(files[2].read_text()) | {"refuse": {"min_noise": 8.0}}))
    here.link()
    for number, file in enumerate(files):
        here.node(number, file)
    here.await_nodes(3)
    here.run({
        **fast, "rounds.minimax": 0, "rounds.min_sites": 2, "rounds.timeout_seconds": 240.0, "run_dir": str(run),
        "strategy.weighting": "equal", "dp.unit": "videos", "dp.group_videos": 2, "dp.noise_multiplier": 4.0,
        "dp.delta": 0.01,
    })  # fmt: skip
    (line,) = rounds_of(run)
    assert replied(line) == {"site-1", "site-2"}, here.logs()
    for site in line["sites"]:
        assert site["metrics"] == {"examples.anonymizer": 1, "examples.action": 1, "teacher_held": 0}
    assert rounds_of(run, "evaluate") == []
    told = json.loads((run / "summary.json").read_text())["privacy"]
    assert 0 < told["epsilon"] < 8
    federation = RunFolder.open(run).federation
    for file in files[:2]:
        ledger = json.loads((file.parent / "state" / federation / "privacy.json").read_text())
        assert ledger["epsilon"] == pytest.approx(told["epsilon"], abs=1e-6)
    assert "this site demands noise of at least 8" in here.logs()
