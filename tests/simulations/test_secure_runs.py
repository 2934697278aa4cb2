"""Whole federations with secure aggregation through the real apps: the same weights, and nothing else in the open."""

import json

import pytest
import yaml
from flwr.app import ConfigRecord, Message, RecordDict

import server.app
from client.app import make_app
from fedspact import main
from server.app import run_federation
from server.resume import open_run
from server.runs import RunFolder
from simulations.federated import deal_out
from simulations.inprocess import InProcessGrid
from simulations.partition import load_rows
from spact_models.checkpoint import load_checkpoint
from spact_models.exchange import snapshot
from spact_models.networks import build_networks
from spact_models.ring import FixedPoint
from spact_models.run_config import load_settings

PLAIN = {"strategy.weighting": "equal", "wire.dtype": "float32", "rounds.min_sites": 3, "rounds.minimax": 1}
SECURE = {**PLAIN, "secure.aggregation": True}


class Tapped(InProcessGrid):
    """Keeps every message that passes, both ways, as the server and the network see them."""

    def __init__(self, *words):
        self.passed = []
        super().__init__(*words)

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        self.passed.append((message, reply))
        return reply


@pytest.fixture
def federate(squares, fast, tmp_path):
    """Deal the squares out to sites, bend their files, and play the whole federation."""
    cache = squares.parent / "secure-cache"

    def run(name, config, bend=lambda *about: about[-1]):
        settings = load_settings({**fast, "simulation.sites": 3, **config})
        config = settings.simulation
        files = deal_out(tmp_path / name, load_rows(squares, config, 0), settings, cache)
        for number, file in enumerate(files, start=1):
            content = bend(number, yaml.safe_load(file.read_text()))
            file.write_text(yaml.safe_dump(content), encoding="utf-8")
        grid = Tapped(make_app(), [{"site": str(file)} for file in files], settings.flat())
        with RunFolder(tmp_path / name / "run") as folder:
            result = run_federation(grid, settings, folder, quiet=True)
        return result, RunFolder.open(tmp_path / name / "run"), grid, files

    return run


def test_masked_is_plain_to_the_steps_of_the_ring(federate):
    """One labelled site less: f_T's sum is over two, f_A's over three, and the server learns only the numbers."""
    odd = {"simulation.unlabelled_sites": 1}
    _, plain, _, _ = federate("plain", {**PLAIN, **odd})
    _, masked, grid, files = federate("masked", {**SECURE, **odd})
    step = FixedPoint(1.0, 3).step
    first = [load_checkpoint(run.checkpoints()[1]).tensors for run in (plain, masked)]
    for name, value in first[0].items():
        assert float((value - first[1][name]).abs().max()) <= step + 2**-22, name
    second = [load_checkpoint(run.checkpoints()[2]).tensors for run in (plain, masked)]
    apart = sum(float((second[0][name] - second[1][name]).double().square().sum()) for name in second[0])
    size = sum(float(value.double().square().sum()) for value in second[0].values())
    assert (apart / size) ** 0.5 < 1e-4
    for line in (line for line in masked.history() if line["kind"] == "train"):
        assert (line["secure"]["members"], line["secure"]["summed"], line["secure"]["lost"]) == (3, 3, [])
        assert line["secure"]["needed"] == 3
        assert line["bytes_up"] > line["secure"]["bytes"] > 0
    check_nothing_in_the_open(grid, masked, files)


def test_a_sites_people_can_read_what_left(federate, capsys):
    _, _, _, files = federate("read", {**SECURE, "rounds.minimax": 0})
    assert main(["site", "ledger", str(files[0])]) == 0
    shown = capsys.readouterr().out
    assert "masked" in shown
    for stage in ("keys", "shares", "confirm", "unmask"):
        assert f"round    1  secure.{stage}  " in shown
    assert "1 updates" in shown
    assert "4 other entries" in shown


def check_nothing_in_the_open(grid, run, files):
    sent = 0
    for message, reply in grid.passed:
        arrays = reply.content.array_records
        if message.metadata.message_type == "train":
            assert set(arrays) == {"update", "taught"}
            assert {array.dtype for record in arrays.values() for array in record.values()} == {"uint32"}
            sent += 1
        else:
            assert not arrays
    assert sent == 6
    for file in files:
        lines = (file.parent / "state" / run.federation / "ledger.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        kinds = [entry.get("kind", "update") for entry in entries]
        assert kinds == ["secure.keys", "secure.shares", "update", "secure.confirm", "secure.unmask"] * 2
        assert all(entry["masked"] for entry in entries if "arrays" in entry)


def test_a_site_that_fails_in_its_round_is_made_up_for(federate):
    """It has dealt its shares and then cannot play: the others' sum comes out as if it had not been there."""
    four = {"simulation.sites": 4, "rounds.minimax": 0, "rounds.min_sites": 2}
    _, plain, _, _ = federate("plain", {**PLAIN, **four}, broken_videos)
    _, masked, _, _ = federate("masked", {**SECURE, **four}, broken_videos)
    (line,) = [line for line in masked.history() if line["kind"] == "train"]
    assert line["secure"] | {"bytes": 0} == {
        "members": 4, "summed": 3, "lost": ["site-4"], "needed": 3, "neighbours": 3, "bytes": 0
    }  # fmt: skip
    assert [drop["name"] for drop in line["dropped"]] == ["site-4"]
    first = [load_checkpoint(run.checkpoints()[1]).tensors for run in (plain, masked)]
    for name, value in first[0].items():
        assert float((value - first[1][name]).abs().max()) <= FixedPoint(1.0, 4).step + 2**-22, name


def broken_videos(number, content):
    """The fourth site joins and deals its shares, and then has no place for a decoded frame."""
    return {**content, "unreadable_share": 0.0, "cache": "/proc/nowhere"} if number == 4 else content


def test_below_the_threshold_the_round_is_void_and_the_weights_stay(federate):
    def bend(number, content):
        return broken_videos(4, content) if number > 2 else content

    config = {**SECURE, "simulation.sites": 4, "rounds.max_void_rounds": 5, "rounds.min_sites": 2}
    with pytest.raises(Exception, match="every round was void"):
        federate("void", config, bend)


def test_with_noise_on_top_the_sites_are_counted_and_epsilon_is_charged(federate):
    """The sum is opened, then noised: of three sites' clipped updates, at most C each, the mean is C plus noise."""
    dp = {"dp.unit": "site", "dp.clip_norm": 0.5, "dp.noise_multiplier": 1e-6, "dp.delta": 0.01}
    dp["dp.epsilon_budget"] = 1e15
    result, run, grid, _ = federate("private", {**SECURE, **dp, "rounds.minimax": 0})
    assert result.privacy["releases"] == 1
    settings = load_settings(run.settings())
    networks = build_networks(settings, result.classes)
    first = snapshot(networks.anonymizer, networks.action)
    moved = sum(float((result.weights[name] - value).double().square().sum()) for name, value in first.items())
    assert 0.1 < moved**0.5 <= 0.5 * 1.001
    metrics = [reply.content.metric_records["metrics"] for message, reply in grid.passed if "arrays" in message.content]
    assert all(set(told) == {"examples.anonymizer", "examples.action", "teacher_held"} for told in metrics)


def test_a_site_that_demands_secure_aggregation_takes_part_in_it_and_in_nothing_else(federate):
    def bend(number, content):
        return {**content, "refuse": {"require_secure_aggregation": True}} if number == 2 else content

    _, masked, _, _ = federate("masked", {**SECURE, "rounds.minimax": 0}, bend)
    assert [line["secure"]["summed"] for line in masked.history() if line["kind"] == "train"] == [3]
    result, _, _, _ = federate("plain", {**PLAIN, "rounds.minimax": 0, "rounds.min_sites": 2}, bend)
    assert [site.name for site in result.rounds[0].sites] == ["site-1", "site-3"]


def test_a_site_without_keys_says_what_it_lacks(federate):
    def bend(number, content):
        return {key: value for key, value in content.items() if number != 3 or key != "member_keys"}

    _, run, _, _ = federate("keyless", {**SECURE, "rounds.minimax": 0, "rounds.min_sites": 2}, bend)
    (line,) = [line for line in run.history() if line["kind"] == "train"]
    assert "lacks signing_key" in line["dropped"][0]["reason"]
    assert line["secure"]["summed"] == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strategy.weighting": "examples"}, "strategy.weighting = 'equal'"),
        ({"strategy.aggregation": "median", "rounds.min_sites": 3}, "a robust rule compares single updates"),
        ({"wire.dtype": "int8"}, "masked updates travel as 32-bit numbers"),
        ({"rounds.min_sites": 1}, "the sum of one site's update is that update"),
        ({"secure.threshold": 0.3}, "must be from 0.5 to 1"),
        ({"secure.neighbours": 2}, "must be 0 (all) or at least 4"),
        ({"secure.value_bound": 0.0}, "must be above 0"),
    ],
)
def test_what_cannot_go_with_it_is_said_before_anybody_trains(change, said, capsys):
    words = ["check"]
    for key, value in {**SECURE, **change}.items():
        words += ["--set", f"{key}={_toml(value)}"]
    assert main(words) == 2
    assert said in capsys.readouterr().err


def _toml(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_an_unasked_question_is_answered_with_the_reason(federate):
    _, _, grid, _ = federate("plain", {**PLAIN, "rounds.minimax": 0})
    config = ConfigRecord({"purpose": "secure.keys", "federation": "f" * 32})
    secure = ConfigRecord({"nonce": bytes(16), "round": 1})
    (reply,) = grid.send_and_receive(
        [Message(RecordDict({"config": config, "secure": secure}), 1, "query", group_id="1")]
    )
    assert "secure.aggregation = false in this run" in reply.error.reason


def test_simulate_makes_the_keys_that_it_needs(squares, fast, tmp_path):
    words = ["simulate", "--data", str(squares), "--sites", "3", "--no-judge", "--out", str(tmp_path / "run")]
    for key, value in {**fast, **SECURE, "rounds.minimax": 0}.items():
        words += ["--set", f"{key}={_toml(value)}"]
    assert main(words) == 0
    assert (tmp_path / "run" / "sites" / "members" / "site-3.pub").exists()
    (line,) = [line for line in RunFolder.open(tmp_path / "run").history() if line["kind"] == "train"]
    assert line["secure"]["summed"] == 3


def test_a_server_that_dies_with_an_opened_sum_loses_that_round_and_no_more(squares, fast, tmp_path, monkeypatch):
    """The sites helped to open round 2 and will not help again; the run goes on with round 3."""
    config = {**fast, **SECURE, "simulation.sites": 3, "rounds.minimax": 2, "run_dir": str(tmp_path / "run")}
    settings = load_settings(config)
    files = deal_out(tmp_path, load_rows(squares, settings.simulation, 0), settings, tmp_path / "cache")
    nodes = [{"site": str(file)} for file in files]
    keep = server.app._keep

    def dies(record, *more):
        if (record.kind, record.round) == ("train", 2):
            raise KeyboardInterrupt
        keep(record, *more)

    def play(chosen):
        with open_run(chosen) as run:
            run_federation(InProcessGrid(make_app(), nodes, chosen.flat()), chosen, run, quiet=True)

    with monkeypatch.context() as patch:
        patch.setattr(server.app, "_keep", dies)
        with pytest.raises(KeyboardInterrupt):
            play(settings)
    play(load_settings({**config, "resume": True}))
    lines = [line for line in RunFolder.open(tmp_path / "run").history() if line["kind"] == "train"]
    assert [(line["round"], line["void"]) for line in lines] == [(1, False), (2, True), (3, False)]
    assert "0 sites have sent their keys" in lines[1]["reason"]
    assert "could be subtracted from it" in lines[1]["dropped"][0]["reason"]


def test_check_says_how_many_must_stay(capsys):
    words = ["check"]
    for key, value in SECURE.items():
        words += ["--set", f"{key}={_toml(value)}"]
    assert main(words) == 0
    assert "stay to the end of a round: 3 of 3, 3 of 4, 4 of 6, 11 of 16." in capsys.readouterr().out


def test_site_check_names_the_members_or_what_is_missing(squares, fast, tmp_path, capsys):
    settings = load_settings({**fast, **SECURE, "simulation.sites": 3})
    files = deal_out(tmp_path, load_rows(squares, settings.simulation, 0), settings, tmp_path / "cache")
    config = tmp_path / "flower.toml"
    chosen = {**fast, **SECURE}
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in chosen.items()))
    words = ["site", "check", str(files[0]), "--config", str(config), "--sample", "2", "--no-timing"]
    assert main(words) == 0
    assert "trusts site-1, site-2, site-3" in capsys.readouterr().out
    for number, (broken, said) in enumerate(
        (
            ("site-1.pub", "holds no site-1.pub"),
            ("site-2.pub", "must be an elliptic-curve public key"),
        )
    ):
        kept = (tmp_path / "sites" / "members" / broken).read_bytes()
        path = tmp_path / "sites" / "members" / broken
        path.unlink() if not number else path.write_text("nonsense")
        assert main(words) == 1
        assert said in capsys.readouterr().out
        path.write_bytes(kept)
