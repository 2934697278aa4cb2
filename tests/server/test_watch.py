"""Watching a run: its status while it lasts, the view of its folder, the Prometheus endpoint, JSON log lines."""

import json
import logging
import re
import socket
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from fedspact import main
from server.app import run_federation
from server.logs import JsonFormatter
from server.runs import RunFolder
from server.watch_view import duration, look, panel, plain, size
from simulations.inprocess import InProcessGrid
from spact_models.errors import RunStopped, UserError
from spact_models.run_config import load_settings

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"preset": "tiny", "rounds.warmup": 1, "rounds.minimax": 2, "rounds.min_sites": 1, "rounds.timeout_seconds": 9.0}


def app(looked=lambda *_: None) -> ClientApp:
    """Sites a and b train for show; site c refuses. ``looked`` is called while each of them works."""
    made = ClientApp()

    def name(context):
        return str(context.node_config["name"])

    @made.query()
    def query(message, context):
        card = {"name": name(context), "classes": ["jump", "walk"], "train_rows": 3, "test_rows": 1}
        return Message(RecordDict({"site": ConfigRecord(card)}), reply_to=message)

    @made.train()
    def train(message, context):
        looked(name(context), int(message.metadata.group_id))
        if name(context) == "c":
            return Message(Error(400, "no more than 2 rounds"), reply_to=message)
        update = message.content.array_records["arrays"]
        told = {"examples.anonymizer": 3, "examples.action": 3, "loss.action": 1.5, "loss.privacy": 2.5}
        return Message(RecordDict({"update": update, "metrics": MetricRecord(told)}), reply_to=message)

    @made.evaluate()
    def evaluate(message, context):  # noqa: ARG001
        return Message(RecordDict({"metrics": MetricRecord({"examples": 2, "top1": 0.75})}), reply_to=message)

    return made


def federate(path, looked=lambda *_: None, **changes):
    settings = load_settings({**KEYS, **changes})
    nodes = [{"name": name} for name in "abc"]
    with RunFolder(path) as folder:
        run_federation(InProcessGrid(app(looked), nodes, settings.flat()), settings, folder, quiet=True)
    return folder


def rendered(view) -> str:
    console = Console(width=110, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(panel(view))
    return console.export_text()


# ---- the status and the view


def test_the_status_follows_each_site_through_the_round(tmp_path):
    seen = {}

    def looked(site, number):
        if number == 2:
            seen[site] = json.loads((tmp_path / "run" / "status.json").read_text())

    federate(tmp_path / "run", looked)
    assert (seen["a"]["stage"], seen["a"]["round"], seen["a"]["phase"]) == ("training", 2, "minimax")
    assert {name: site["state"] for name, site in seen["a"]["sites"].items()} == dict.fromkeys("abc", "working")
    assert (seen["a"]["rounds_planned"], seen["a"]["deadline_seconds"]) == (3, 9.0)
    assert seen["a"]["totals"]["rounds"] == 1
    ended = json.loads((tmp_path / "run" / "status.json").read_text())
    assert ended["stage"] == "ended"
    assert (ended["totals"]["rounds"], ended["totals"]["void_rounds"], ended["totals"]["left_out"]) == (3, 0, 3)
    lines = RunFolder.open(tmp_path / "run").history()
    assert ended["totals"]["bytes_up"] == sum(line["bytes_up"] for line in lines)
    assert ended["last"]["evaluate"]["top1"] == 0.75


def test_the_view_while_a_round_is_open_says_who_works_and_how_long_it_takes(tmp_path):
    shown = {}

    def looked(site, number):
        if (site, number) == ("b", 3):
            view = look(tmp_path / "run")
            shown.update(text=rendered(view), view=view, plain=plain(view))

    federate(tmp_path / "run", looked)
    view = shown["view"]
    assert (view.done, view.planned, view.stage, view.ended) == (2, 3, "training", False)
    seconds = view.trained[-1]["seconds"]  # of the one minimax round so far: warm-up rounds are of another length
    open_for = view.looked_at - view.status["opened_at"]
    assert view.seconds_left == pytest.approx(max(0.0, seconds - open_for))
    assert "round 2 of 3, training" in shown["text"]
    assert re.search(r"a +working", shown["text"])
    assert "about" in shown["plain"]
    assert "round 2 (train): c: error 400: no more than 2 rounds" in shown["text"]
    row = next(line.split() for line in shown["text"].splitlines() if line.strip().startswith("2 "))
    assert row[:7] == ["2", "train", "minimax", "2", "1", "1.500", "2.500"]


def test_a_sites_own_words_are_shown_as_they_are_and_never_as_markup(tmp_path):
    """Square brackets are rich's markup: a name or a reason in them must neither vanish nor end the live view."""
    folder = federate(tmp_path / "run")
    said = ["site a has [walk, run], the federation has [fall]", "no such file [/etc]", "[red]"]
    status = json.loads((folder.path / "status.json").read_text())
    states = [{"state": "left out", "reason": reason, "seconds": 0.0} for reason in said]
    status |= {"stage": "training", "sites": dict(zip(("a", "b", "[bold]"), states, strict=True))}
    (folder.path / "status.json").write_text(json.dumps(status))
    shown = rendered(look(folder.path))
    for words in (*said, "[bold]"):
        assert words in shown


def test_watch_once_on_a_finished_run_and_a_stopped_one(tmp_path, capsys):
    folder = federate(tmp_path / "run")
    folder.write_summary({})
    assert main(["watch", str(tmp_path / "run"), "--once"]) == 0
    out = capsys.readouterr().out
    assert "round 2 train (minimax): 2 sites, 1 left out; L_T 1.500, L_B 2.500; up" in out
    assert "round 3 evaluate (minimax): 3 sites, 0 left out; top-1 0.750" in out
    assert "run: round 3/3, complete; up" in out
    assert "  c: left out: error 400: no more than 2 rounds" in out
    assert "\x1b" not in out  # no terminal, no colours
    with pytest.raises(RunStopped):
        federate(tmp_path / "bad", **{"rounds.min_sites": 3})
    assert main(["watch", str(tmp_path / "bad")]) == 1  # it has ended, so it does not wait
    out = capsys.readouterr().out
    assert "stopped: 3 void rounds in a row" in out
    assert "void rounds 3" in out
    assert main(["watch", str(tmp_path), "--once"]) == 2
    assert "not a run folder" in capsys.readouterr().err
    assert main(["watch", str(tmp_path / "run"), "--interval", "0"]) == 2


def test_watch_without_a_terminal_says_each_round_once_and_ends_with_the_run(tmp_path, capsys):
    """A run and its watcher at the same time."""
    started = threading.Event()
    worker = threading.Thread(target=lambda: federate(tmp_path / "run", lambda *_: started.set()))
    worker.start()
    assert started.wait(60)
    assert main(["watch", str(tmp_path / "run"), "--interval", "0.05"]) == 0
    worker.join()
    out = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in out[:4]] == [
        "round 1 train",
        "round 2 train",
        "round 3 train",
        "round 3 evaluate",
    ]
    assert out[4].startswith("run: round 3/3, ended")


def test_a_silent_process_is_suspected_and_an_old_folder_has_no_status(tmp_path):
    folder = federate(tmp_path / "run")
    status = tmp_path / "run" / "status.json"
    told = {**json.loads(status.read_text()), "stage": "training"}
    status.write_text(json.dumps(told))
    view = look(folder.path, now=told["updated_at"] + 9 + 121)
    assert view.stage == "training, but nothing was heard for 2 min: has its process ended?"
    assert look(folder.path, now=told["updated_at"] + 9 + 100).stage == "training"
    status.unlink()
    assert look(folder.path).stage == "no status yet"
    assert "round 3 of 3" in rendered(look(folder.path))


def test_a_status_that_cannot_be_written_does_not_stop_the_run(tmp_path, caplog):
    (tmp_path / "run" / "sites").mkdir(parents=True)

    def looked(*_):
        blocked = tmp_path / "run" / ".status.json.tmp"
        if not blocked.exists():
            blocked.mkdir()

    federate(tmp_path / "run", looked)
    assert "status.json: cannot be written" in caplog.text
    assert len(RunFolder.open(tmp_path / "run").history()) == 4


def test_units():
    assert [size(value) for value in (0, 999, 1000, 25_300_000, 4e9)] == ["0 B", "999 B", "1.0 kB", "25.3 MB", "4.0 GB"]
    assert [duration(value) for value in (3.4, 119, 150, 9000)] == ["3 s", "119 s", "2 min", "2.5 h"]


# ---- Prometheus


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    return {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}


def test_the_endpoint_tells_the_open_round_and_the_totals(tmp_path):
    port, seen = free_port(), {}

    def looked(site, number):
        if (site, number) == ("c", 2):
            seen.update(scrape(port))

    federate(tmp_path / "run", looked, **{"watch.metrics_port": port})
    line = RunFolder.open(tmp_path / "run").history()[0]
    assert seen["fedspact_round",] == 2
    assert seen["fedspact_rounds_planned",] == 3
    assert seen["fedspact_rounds_total",] == 1
    assert seen["fedspact_left_out_total",] == 1
    assert seen["fedspact_round_deadline_seconds",] == 9
    assert seen["fedspact_bytes_total", ("direction", "up")] == line["bytes_up"]
    assert seen["fedspact_bytes_total", ("direction", "down")] == line["bytes_down"]
    assert {state: seen["fedspact_sites", ("state", state)] for state in ("working", "replied", "left_out")} == {
        "working": 1, "replied": 2, "left_out": 0,
    }  # fmt: skip
    assert ("fedspact_site_reply_seconds", ("site", "a")) in seen
    assert seen["fedspact_metric", ("kind", "train"), ("name", "loss.privacy")] == 2.5
    with pytest.raises(OSError, match="refused"):  # it ends with the run
        scrape(port)


def test_a_port_that_is_taken_is_the_users_mistake(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"watch\.metrics_port = {port}, cannot be listened on .*Choose another port"
        ):
            federate(tmp_path / "run", **{"watch.metrics_port": port})


def test_the_example_dashboard_asks_only_for_figures_that_there_are(tmp_path):
    dashboard = json.loads((ROOT / "examples" / "grafana" / "fedspact.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
        for name in re.findall(r"fedspact_\w+", target["expr"])
    }
    port, names = free_port(), set()

    def looked(site, number):
        if (site, number) == ("c", 2):
            names.update(key[0] for key in scrape(port))

    federate(tmp_path / "run", looked, **{"watch.metrics_port": port})
    assert asked
    assert asked <= names


# ---- JSON lines


def test_json_log_lines_are_one_object_each():
    formatter = JsonFormatter()
    try:
        raise ValueError("odd")
    except ValueError:
        record = logging.LogRecord("fedspact.server", logging.ERROR, "", 1, "site %s\nis out", ("ä",), sys.exc_info())
    line = formatter.format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert (told["level"], told["logger"], told["message"]) == ("ERROR", "fedspact.server", "site ä\nis out")
    assert "ValueError: odd" in told["error"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", told["time"])
