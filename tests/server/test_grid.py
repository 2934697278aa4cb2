"""Replies are handed over one by one as they arrive; who is late is named, ignored and thrown away."""

import gc
import logging
import weakref

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from server.grid import ArrivalGrid
from simulations.inprocess import become_task

become_task()


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class PostOffice(Grid):
    """A Grid whose node n replies ``delays[n]`` seconds after the push; None = never, "unsent" = push fails."""

    def __init__(self, delays: dict[int, float | str | None], clock: Clock, sets_ids: bool = True):
        self.delays, self.clock, self.sets_ids = delays, clock, sets_ids
        self.due: dict[str, tuple[float, Message]] = {}
        self.pulled: list[list[str]] = []
        self.alive: list[weakref.ref] = []

    def push_messages(self, messages):
        ids = []
        for message in messages:
            delay = self.delays[message.metadata.dst_node_id]
            name = f"m{len(self.due)}-{message.metadata.dst_node_id}"
            if self.sets_ids:
                message.metadata.__dict__["_message_id"] = name
            if delay == "unsent":
                if not self.sets_ids:
                    ids.append(None)
                continue
            ids.append(name)
            self.due[name] = (float("inf") if delay is None else self.clock() + delay, message)
        return ids

    def pull_messages(self, message_ids):
        names = list(message_ids)
        self.pulled.append(names)
        ready = [name for name in names if name in self.due and self.due[name][0] <= self.clock()]
        replies = []
        for name in ready:
            _, message = self.due.pop(name)
            replies.append(Message(RecordDict({"x": ConfigRecord({"id": name})}), reply_to=message))
            self.alive.append(weakref.ref(replies[-1]))
        return replies

    def send_and_receive(self, messages, *, timeout=None):  # noqa: ARG002
        raise AssertionError("this one would collect all replies first")

    def get_node_ids(self):
        return list(self.delays)

    def get_nodes(self):
        return ["nodes"]

    def set_run(self, run):
        self.the_run = run

    @property
    def run(self):
        return self.the_run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


def office(delays, **kwargs):
    clock = Clock()
    inner = PostOffice(delays, clock, **kwargs)
    return inner, ArrivalGrid(inner, poll_seconds=0.5, clock=clock, sleep=clock.sleep), clock


def messages(nodes):
    return (Message(RecordDict(), node, "train", group_id="1") for node in nodes)  # a generator, as start() may pass


def senders(replies):
    return [reply.metadata.src_node_id for reply in replies]


def test_replies_come_in_order_of_arrival():
    _, grid, _ = office({1: 5.0, 2: 1.0, 3: 0.0})
    assert senders(grid.send_and_receive(messages([1, 2, 3]))) == [3, 2, 1]


def test_messages_are_pushed_before_the_first_reply_is_asked_for():
    inner, grid, _ = office({1: 0.0, 2: 0.0})
    replies = grid.send_and_receive(messages([1, 2]))
    assert len(inner.due) == 2
    next(iter(replies))
    assert len(inner.due) == 1  # the second reply is not fetched while the first is in use
    assert all(len(names) == 1 for names in inner.pulled)


def test_only_one_reply_is_alive_at_any_time():
    inner, grid, _ = office(dict.fromkeys(range(6), 0.0))
    seen = 0
    for reply in grid.send_and_receive(messages(range(6))):
        seen += 1
        gc.collect()
        assert [ref() for ref in inner.alive if ref() is not None] == [reply]
        del reply
    assert seen == 6


def test_a_late_node_is_named_and_its_reply_is_ignored_when_it_comes(caplog):
    inner, grid, clock = office({1: 0.0, 2: 7.0})
    with caplog.at_level(logging.WARNING, logger="fedspact.server"):
        assert senders(grid.send_and_receive(messages([1, 2]), timeout=3.0)) == [1]
    assert clock.now == 3.0
    assert "node 2: no reply within 3 s; a later one is ignored" in caplog.text
    clock.now = 10.0
    inner.delays = {1: 0.0, 2: 0.0}
    with caplog.at_level(logging.WARNING, logger="fedspact.server"):
        second = list(grid.send_and_receive(messages([1, 2]), timeout=3.0))
    assert senders(second) == [1, 2]
    assert all(reply.content["x"]["id"] != "m1-2" for reply in second)  # not the late one
    assert "node 2: a reply came after its deadline and is ignored" in caplog.text
    assert not inner.due  # thrown away, not left in the store


def test_what_has_arrived_at_the_deadline_still_counts():
    _, grid, clock = office({1: 2.9, 2: 3.0, 3: 3.5})
    assert senders(grid.send_and_receive(messages([1, 2, 3]), timeout=3.0)) == [1, 2]
    assert clock.now == 3.0


def test_looks_that_take_long_are_made_seldom_and_the_deadline_is_kept():
    """40 sites whose question takes 0.125 s each: a look of 5 s every 25 s, not one after the other."""
    inner, grid, clock = office(dict.fromkeys(range(40)))
    ask = inner.pull_messages

    def slow(names):
        clock.now += 0.125
        return ask(names)

    inner.pull_messages = slow
    assert list(grid.send_and_receive(messages(range(40)), timeout=100.0)) == []
    assert len(inner.pulled) == 40 * 5  # at 0, 25, 50, 75 and 100 s
    assert clock.now == 105.0


def test_without_a_deadline_it_waits():
    _, grid, clock = office({1: 100.0})
    assert senders(grid.send_and_receive(messages([1]))) == [1]
    assert clock.now >= 100.0


@pytest.mark.parametrize("sets_ids", [True, False])
def test_a_message_that_cannot_be_pushed_is_named_and_not_waited_for(caplog, sets_ids):
    _, grid, clock = office({1: 0.0, 2: "unsent", 3: 0.0}, sets_ids=sets_ids)
    with caplog.at_level(logging.WARNING, logger="fedspact.server"):
        assert senders(grid.send_and_receive(messages([1, 2, 3]), timeout=9.0)) == [1, 3]
    assert "node 2: the message could not be sent" in caplog.text
    assert clock.now == 0.0


def test_no_messages_no_replies_and_no_waiting():
    inner, grid, clock = office({1: 0.0})
    assert list(grid.send_and_receive([], timeout=5.0)) == []
    assert (inner.pulled, clock.now) == ([], 0.0)


def test_a_store_that_has_forgotten_a_late_message_is_no_error():
    inner, grid, _ = office({1: None})
    assert list(grid.send_and_receive(messages([1]), timeout=1.0)) == []
    real = inner.pull_messages
    forgotten = next(iter(inner.due))

    def pull(names):
        if forgotten in names:
            raise KeyError(forgotten)
        return real(names)

    inner.pull_messages = pull
    inner.delays = {1: 0.0}
    assert senders(grid.send_and_receive(messages([1]), timeout=1.0)) == [1]


def test_an_error_reply_is_handed_over_like_any_other():
    inner, grid, _ = office({1: 0.0})
    inner.pull_messages = lambda names: [Message(Error(2, "boom"), reply_to=inner.due.pop(next(iter(names)))[1])]
    (reply,) = grid.send_and_receive(messages([1]))
    assert reply.error.reason == "boom"


def test_everything_else_is_delegated():
    inner, grid, _ = office({1: 0.0, 2: 0.0})
    grid.set_run("run")
    assert (inner.the_run, grid.run) == ("run", "run")
    assert list(grid.get_node_ids()) == [1, 2]
    assert list(grid.get_nodes()) == ["nodes"]
    message = grid.create_message(RecordDict(), "train", 2, "7", ttl=9.0)
    assert (message.metadata.dst_node_id, message.metadata.group_id, message.metadata.ttl) == (2, "7", 9.0)
    ids = list(grid.push_messages([message]))
    assert senders(grid.pull_messages(ids)) == [2]
