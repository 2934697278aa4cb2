"""A round's deadline follows the sites' own history, within limits, and through the strategy it reaches the grid."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from server.deadline import PATIENCE, Deadlines
from server.grid import ArrivalGrid
from server.join import Roster
from server.records import Dropped, RoundRecord, SiteRecord
from server.strategy import FedSPAct
from simulations.inprocess import become_task
from spact_models.errors import UserError
from spact_models.run_config import load_settings

become_task()
KEYS = {"rounds.deadline": "adaptive", "rounds.timeout_seconds": 1000.0, "rounds.deadline_least_seconds": 5.0}


def deadlines(**changes):
    return Deadlines(load_settings({**KEYS, **changes}).rounds)


def test_a_fixed_deadline_is_the_timeout_whatever_happened():
    made = deadlines(**{"rounds.deadline": "fixed"})
    made.learn("train", "warmup", {"a": 1.0}, [], 1000.0)
    assert made.seconds("train", "warmup", ["a"]) == 1000.0


def test_adaptive_is_factor_times_the_slow_quantile_within_limits():
    made = deadlines()
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(5):
        times = {f"site-{number}": float(seconds) for number, seconds in enumerate(rng.uniform(10, 90, 8))}
        seen += times.values()
        made.learn("train", "minimax", times, [], 1000.0)
    slow = sorted(seen)[int(np.ceil(0.9 * (len(seen) - 1)))]  # the quantile by hand
    assert made.seconds("train", "minimax", times) == pytest.approx(3 * slow)
    quick, slowest = deadlines(), deadlines()
    quick.learn("train", "minimax", {"a": 0.1}, [], 1000.0)
    slowest.learn("train", "minimax", {"a": 900.0}, [], 1000.0)
    assert quick.seconds("train", "minimax", ["a"]) == 5.0
    assert slowest.seconds("train", "minimax", ["a"]) == 1000.0


def test_who_has_no_past_in_this_phase_gets_all_the_time():
    made = deadlines()
    made.learn("train", "warmup", {"a": 10.0}, [], 1000.0)
    assert made.seconds("train", "warmup", ["a"]) == 30.0
    assert made.seconds("train", "warmup", ["a", "new"]) == 1000.0
    assert made.seconds("train", "minimax", ["a"]) == 1000.0
    assert made.seconds("evaluate", "warmup", ["a"]) == 1000.0


def test_a_late_site_lengthens_the_deadline_until_patience_is_over_and_is_counted_again_when_it_is_back():
    made, given = deadlines(), []
    made.learn("train", "minimax", {"a": 10.0, "b": 10.0}, [], 1000.0)
    for _ in range(PATIENCE + 1):
        given.append(made.seconds("train", "minimax", ["a", "b"]))
        made.learn("train", "minimax", {"a": 10.0}, ["b"], given[-1])
    assert given == [30.0, 90.0, 270.0, 30.0]  # a hung site does not hold up the others for ever
    made.learn("train", "minimax", {"a": 10.0, "b": 50.0}, [], 30.0)
    assert made.seconds("train", "minimax", ["a", "b"]) > 30.0


def test_a_resumed_run_remembers_its_sites():
    made, again = deadlines(), deadlines()
    site = SiteRecord(1, "a", {}, 0, 0, 12.0)
    record = RoundRecord(
        "train", 1, "warmup", False, "", {}, (site,), (Dropped(2, "b", "silent", late=True),), deadline_seconds=40.0
    )
    made.learn("train", "warmup", {"a": 12.0}, ["b"], 40.0)
    again.relearn([RoundRecord.from_json(record.to_json())])
    assert again.seconds("train", "warmup", ["a"]) == made.seconds("train", "warmup", ["a"]) == 36.0


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rounds.deadline", "soon", "must be one of: fixed, adaptive"),
        ("rounds.deadline_factor", 0.5, "must be at least 1"),
        ("rounds.deadline_quantile", 0.0, r"must be in \(0, 1\]"),
    ],
)
def test_settings_of_the_deadline(key, value, words):
    with pytest.raises(UserError, match=words):
        load_settings({key: value})


class Slow(Grid):
    """Sites answer after their seconds of a clock that only sleeping moves; site 2 hangs in round 3."""

    def __init__(self):
        self.now, self.box, self.ttl = 0.0, {}, {}

    def push_messages(self, messages):
        names = []
        for message in messages:
            node, number = message.metadata.dst_node_id, message.metadata.group_id
            self.ttl[number] = message.metadata.ttl
            after = 500.0 if (node, number) == (2, "3") else 10.0 * node
            names.append(f"{number}-{node}-{message.metadata.message_type}")
            self.box[names[-1]] = (self.now + after, message)
        return names

    def pull_messages(self, message_ids):
        for name in list(message_ids):
            if self.box[name][0] <= self.now:
                message = self.box.pop(name)[1]
                update = ArrayRecord({"action.w": Array(np.ones(2, np.float32))})
                told = MetricRecord({"examples.action": 1, "examples": 1})
                yield Message(RecordDict({"update": update, "metrics": told}), reply_to=message)

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError

    def get_node_ids(self):
        return [1, 2]

    def set_run(self, run): ...

    @property
    def run(self): ...

    def create_message(self, *args, **kwargs):
        raise NotImplementedError


def test_a_hung_site_is_left_out_at_the_adaptive_deadline_and_is_back_in_the_next_round(monkeypatch, caplog):
    import torch

    from server.join import SiteCard

    inner = Slow()
    monkeypatch.setattr("server.strategy.time.monotonic", lambda: inner.now)
    monkeypatch.setattr("server.round.time.monotonic", lambda: inner.now)
    settings = load_settings({**KEYS, "rounds.warmup": 0, "rounds.minimax": 5, "rounds.min_sites": 1})
    roster = Roster("f" * 32, ("a", "b"), 1.0)
    for node in (1, 2):
        roster.cards[node] = SiteCard(node, f"site-{node}", (), 1, 1)
    roster.agree()
    records = []
    strategy = FedSPAct(settings, roster, {"action.w": torch.zeros(2)}, records.append)

    def sleep(seconds):
        inner.now += seconds

    grid = ArrivalGrid(inner, poll_seconds=1.0, clock=lambda: inner.now, sleep=sleep)
    grid.limit_seconds, grid.name = strategy.deadline_seconds, roster.name
    strategy.start(grid, strategy.initial_arrays(), num_rounds=5, timeout=1000.0)
    train = [record for record in records if record.kind == "train"]
    assert [len(record.sites) for record in train] == [2, 2, 1, 2, 2]
    assert train[0].deadline_seconds == 1000.0
    assert train[2].deadline_seconds == pytest.approx(60.0, abs=3)
    assert inner.now == pytest.approx(20 + 20 + 60 + 20 + 20 + 20, abs=6)  # four rounds, the hung one, an evaluation
    assert train[2].dropped[0].late
    assert "site-2: no reply within 60 s; a later one is ignored" in caplog.text
    assert inner.ttl["3"] == pytest.approx(90.0, abs=3)  # the request itself lapses soon after
