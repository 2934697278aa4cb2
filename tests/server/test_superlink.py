"""Real processes on loopback: a SuperLink, two SuperNodes and ``flwr run`` train what the in-process engine trains."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from client.app import make_app
from server.app import run_federation
from server.runs import RunFolder
from simulations.inprocess import InProcessGrid
from simulations.laboratory import export_anonymizer
from spact_models.run_config import load_settings
from spact_models.signing import make_key, public_path, verify

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = Path(sys.executable).parent  # flwr and the flower-* commands of this environment
PATIENCE_SECONDS = 420  # nine processes import torch one after the other; a busy machine takes its time


@pytest.fixture(scope="module")
def federation(loopback, deal):
    """A SuperLink that listens, and two SuperNodes on their way to it."""
    made = loopback("superlink")
    made.site_files = deal(made.folder, 2, unlabelled=1)
    made.link()
    for number, file in enumerate(made.site_files):
        made.node(number, file)
    return made


@pytest.mark.slow
def test_real_processes_train_what_the_in_process_engine_trains(federation, distance, fast, tmp_path):
    """One labelled site and one without labels, so both branches, the teacher and an empty branch cross the wire."""
    patience = {"rounds.min_sites": 2, "rounds.timeout_seconds": float(PATIENCE_SECONDS)}
    chosen = {**fast, **patience, "rounds.minimax": 1, "run_dir": str(tmp_path / "run")}
    shown = federation.run(chosen)
    assert (tmp_path / "run" / "summary.json").exists(), f"{shown}\n{federation.logs()}"

    run, settings = RunFolder.open(tmp_path / "run"), load_settings(chosen)
    assert run.settings() == settings.flat()
    lines = run.history()
    assert [(line["kind"], line["round"], line["void"]) for line in lines] == [
        ("train", 1, False),
        ("train", 2, False),
        ("evaluate", 2, False),
    ], federation.logs()
    for line in lines:
        assert [site["name"] for site in sorted(line["sites"], key=lambda site: site["name"])] == ["site-1", "site-2"]
        assert line["dropped"] == [], federation.logs()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["sites"], summary["rounds"], summary["seed"]) == (2, 2, 0)
    check_ledgers(federation, run, lines)

    twin = RunFolder(tmp_path / "twin")
    nodes = [{"site": str(file)} for file in federation.site_files]
    run_federation(InProcessGrid(make_app(), nodes, settings.flat()), settings, twin, quiet=True)
    assert distance(run, 2, twin, 2) < 1e-4
    assert distance(run, 1, twin, 2) > 1e-3  # the measure can tell rounds apart


def check_ledgers(federation, run: RunFolder, lines: list[dict]) -> None:
    """Each site's ledger lists what the server says that it got, and nothing but f_A and f_T."""
    for file in federation.site_files:
        ledger = file.parent / "state" / run.federation / "ledger.jsonl"
        entries = [json.loads(line) for line in ledger.read_text().splitlines()]
        assert [entry["round"] for entry in entries] == [1, 2]
        for entry, line in zip(entries, [line for line in lines if line["kind"] == "train"], strict=True):
            assert {name.partition(".")[0] for name in entry["arrays"]} <= {"anonymizer", "action"}
            arrived = next(site["bytes_up"] for site in line["sites"] if site["name"] == file.parent.name)
            # beside its values each array has a header, a description, and its name and hash in the list of arrays
            assert 0 <= arrived - entry["bytes"] <= 1000 + 600 * len(entry["arrays"])
    assert not any(name.startswith("action.") for name in first_arrays(federation.site_files[1], run))  # no labels yet


def first_arrays(file: Path, run: RunFolder) -> dict[str, list]:
    ledger = file.parent / "state" / run.federation / "ledger.jsonl"
    return json.loads(ledger.read_text().splitlines()[0])["arrays"]


@pytest.mark.slow
def test_a_users_mistake_reaches_the_terminal_as_one_sentence(federation, fast, tmp_path):
    wrong = {**fast, "action.classes": "walk,run", "rounds.min_sites": 2, "run_dir": str(tmp_path / "run")}
    shown = federation.run(wrong)
    assert "site site-1 has [jump, walk], the federation has [run, walk]: it adds jump" in shown, federation.logs()
    assert "Traceback" not in shown
    assert list((tmp_path / "run").iterdir()) == []  # nothing began: the same run_dir serves the corrected run


@pytest.mark.slow
def test_real_sites_judge_a_release_and_the_server_signs_it(federation, fast, tmp_path):
    run = RunFolder(tmp_path / "run")
    settings = load_settings({**fast, "rounds.minimax": 1})
    nodes = [{"site": str(file)} for file in federation.site_files]
    run_federation(InProcessGrid(make_app(), nodes, settings.flat()), settings, run, quiet=True)
    run.close()
    export_anonymizer(run)
    key = tmp_path / "owner.key"
    make_key(key)
    (tmp_path / "policy.yaml").write_text(
        "sites: 2\nleakage: 1.0\nutility: 0\nvideos: 1\nraw_leakage: 0.001\nlearned: 0\npessimistic: false\n"
    )
    asked = {
        **fast, "rounds.minimax": 1, "rounds.timeout_seconds": float(PATIENCE_SECONDS), "task": "release",
        "run_dir": str(run.path), "release.policy": str(tmp_path / "policy.yaml"), "release.key": str(key),
    }  # fmt: skip
    shown = federation.run(asked)
    assert "released:" in shown, federation.logs()
    assert verify(run.path / "anonymizer.safetensors", [public_path(key)]).trusted
    told = json.loads((run.path / "release.json").read_text())
    assert [site["name"] for site in told["sites"]] == ["site-1", "site-2"]
    for file in federation.site_files:  # the figures stand in the site's own ledger
        ledger = file.parent / "state" / run.federation / "ledger.jsonl"
        last = json.loads(ledger.read_text().splitlines()[-1])
        assert (last["kind"], last["model_sha256"]) == ("release", told["model"]["sha256"])


def test_the_bundle_holds_the_program_and_nothing_else(tmp_path):
    """``flwr run`` ships this file to the SuperLink and from there to every site."""
    copy = tmp_path / "fedspact"  # Flower asks for a folder's name without dots and underscores
    shutil.copytree(ROOT, copy, ignore=not_shipped)
    for name in ("venv", "env"):  # Flower refuses a project with deeper folders than ten, a user's environment has them
        deep = copy.joinpath(name, *"abcdefghijkl")
        deep.mkdir(parents=True)
        (deep / "LICENSE.md").write_text("not ours")
    made = subprocess.run(
        [str(COMMANDS / "flwr"), "build", "--app", str(copy)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    (bundle,) = tmp_path.glob("*.fab")
    assert bundle.stat().st_size < 10 * 2**20
    names = {name for name in zipfile.ZipFile(bundle).namelist() if not name.startswith(".info/")}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in ("spact_models", "client", "server")
        for path in (ROOT / package).rglob("*.py")
    }
    assert names == {*expected, "pyproject.toml"}
    assert "client/video/decode.py" in names


def not_shipped(_folder: str, names: list[str]) -> set[str]:
    """What a working copy has beside the repository's own files."""
    hidden = {name for name in names if name.startswith(".") and name != ".gitignore"}
    return hidden | ({"runs", "build", "dist", "site-state", "__pycache__", "venv", "env"} & set(names))
