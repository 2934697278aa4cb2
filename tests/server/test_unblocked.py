"""A pull that hangs holds up neither the other sites' replies nor the deadline."""

import gc
import logging
import threading
import weakref

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from server.grid import ArrivalGrid, GridAround
from server.unblocked import UnblockedGrid
from simulations.inprocess import become_task

become_task()


class SlowLinks(GridAround):
    """A Grid whose pull of node n's reply returns only when ``across[n]`` is set."""

    def __init__(self, nodes):
        super().__init__(None)
        self.across = {node: threading.Event() for node in nodes}
        self.sent = {}
        self.running, self.most, self.alive = 0, 0, []
        self.lock = threading.Lock()

    def push_messages(self, messages):
        ids = []
        for message in messages:
            ids.append(f"m{len(self.sent)}")
            self.sent[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids):
        (name,) = message_ids
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        message = self.sent[name]
        node = message.metadata.dst_node_id
        assert self.across[node].wait(timeout=60)
        with self.lock:
            self.running -= 1
        if node == 13:
            raise ConnectionError("the SuperLink is gone")
        reply = Message(RecordDict({"x": ConfigRecord({"id": name})}), reply_to=message)
        self.alive.append(weakref.ref(reply))
        return [reply]


def ask(grid, nodes, timeout=None):
    messages = [Message(RecordDict(), node, "train", group_id="1") for node in nodes]
    return grid.send_and_receive(messages, timeout=timeout)


def sender(reply):
    return reply.metadata.src_node_id


def test_the_others_are_taken_while_one_hangs_and_it_is_taken_when_it_is_across():
    links = SlowLinks([1, 2, 3])
    replies = ask(ArrivalGrid(UnblockedGrid(links, patience_seconds=0.05), poll_seconds=0.01), [1, 2, 3])
    links.across[2].set()
    links.across[3].set()
    assert [sender(next(replies)), sender(next(replies))] == [2, 3]  # without it this waits for ever
    links.across[1].set()
    assert sender(next(replies)) == 1
    assert list(replies) == []


def test_the_deadline_holds_and_the_reply_that_hung_is_thrown_away_later(caplog):
    links = SlowLinks([1, 2])
    grid = ArrivalGrid(UnblockedGrid(links, patience_seconds=0.05), poll_seconds=0.01)
    links.across[2].set()
    with caplog.at_level(logging.INFO, logger="fedspact.server"):
        assert [sender(reply) for reply in ask(grid, [1, 2], timeout=0.2)] == [2]
        assert "node 1: no reply within 0.2 s; a later one is ignored" in caplog.text
        links.across[1].set()
        until_done(grid, "m0")
        assert [sender(reply) for reply in ask(grid, [2], timeout=5)] == [2]
    assert "node 1: a reply came after its deadline and is ignored" in caplog.text
    gc.collect()
    assert [ref() for ref in links.alive if ref() is not None] == []  # it keeps no memory


def until_done(grid, name):
    assert grid._inner._hanging[name].done.wait(timeout=60)


def test_one_pull_at_a_time_while_nothing_hangs_and_so_many_when_all_do():
    links = SlowLinks(range(12))
    for event in links.across.values():
        event.set()
    assert len(list(ask(ArrivalGrid(UnblockedGrid(links, patience_seconds=60)), range(12)))) == 12
    assert links.most == 1

    links = SlowLinks(range(12))
    replies = ask(
        ArrivalGrid(UnblockedGrid(links, patience_seconds=0.01, at_once=3), poll_seconds=0.01), range(12), 0.3
    )
    assert list(replies) == []
    assert links.most == 3
    for event in links.across.values():
        event.set()


def test_an_error_of_a_pull_is_raised_where_the_reply_is_asked_for():
    links = SlowLinks([13])
    grid = UnblockedGrid(links, patience_seconds=0.01)
    grid.push_messages([Message(RecordDict(), 13, "train", group_id="1")])
    assert grid.pull_messages(["m0"]) == []
    links.across[13].set()
    grid._hanging["m0"].done.wait(timeout=60)
    with pytest.raises(ConnectionError, match="SuperLink is gone"):
        grid.pull_messages(["m0"])
