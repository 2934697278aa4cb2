"""A reply that is still on its way holds up neither the other sites' nor the deadline, nor does it take memory.

Flower's own SuperLink state, handlers and Grid, in one process; what a site has sent so far is up to each test.
"""

import gc
import logging
import tracemalloc
from datetime import timedelta
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.constant import NOOP_FLWR_AID
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.superlink.servicer.runtime import runtime_handlers

from server.grid import ArrivalGrid
from server.unblocked import UnblockedGrid
from simulations.inprocess import become_task

LAYERS, VALUES = 4, 20_000
REPLY_BYTES = LAYERS * VALUES * 4


class SuperLink:
    """Flower's own state with ``sites`` nodes and a run, and a Grid upon it as a ServerApp has one."""

    def __init__(self, sites):
        factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
        self.state = factory.state()
        self.run_id = self.state.create_run(
            None, None, "hash", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, "flwr-serverapp"
        )
        become_task(self.run_id)
        self.nodes = [self.state.create_node("us", "us", b"%d" % number, 1e6) for number in range(sites)]
        for node in self.nodes:
            assert self.state.activate_node(node, 1e6)
        self.client = Client(self.state, SimpleNamespace(run_id=self.run_id))
        inner = HttpGrid(token="of a task")
        inner._client = self.client
        (run,) = self.state.get_run_info(run_ids=[self.run_id])
        inner.set_run(run)
        self.looks = []  # called when the grid pauses between two looks
        self.now = 0.0
        self.grid = ArrivalGrid(UnblockedGrid(inner), poll_seconds=0.5, clock=lambda: self.now, sleep=self._pause)

    def _pause(self, seconds):
        self.now += seconds
        for look in self.looks:
            look()

    def ask(self, nodes=None, timeout=None):
        messages = [Message(RecordDict(), node, "train", group_id="1") for node in nodes or self.nodes]
        return self.grid.send_and_receive(messages, timeout=timeout)

    def upload(self, node):
        """A site's reply, announced and not yet sent."""
        return Upload(self.state, self.run_id, node)


class Client:
    """Flower's client of the SuperLink without HTTP: the handlers behind each request are called directly."""

    def __init__(self, state, task):
        self.called = []
        self.broken = False
        for name, handler in (
            ("PushMessages", runtime_handlers.push_messages),
            ("PushObject", runtime_handlers.push_object),
            ("PullMessages", runtime_handlers.pull_messages),
            ("PullObject", runtime_handlers.pull_object),
            ("ConfirmMessageReceived", runtime_handlers.confirm_message_received),
        ):
            setattr(self, name, partial(self._call, name, handler, state, task))

    def _call(self, name, handler, state, task, request):
        self.called.append(name)
        if self.broken and name == "PullObject":
            raise ConnectionError("the SuperLink is gone")
        return handler(request, state, task)


class Upload:
    def __init__(self, state, run_id, node):
        (asked,) = state.get_message_ins(node_id=node, limit=1)
        values = np.random.default_rng(node).standard_normal((LAYERS, VALUES), dtype=np.float32)
        arrays = ArrayRecord({f"layer{number}": Array(layer) for number, layer in enumerate(values)})
        reply = Message(RecordDict({"arrays": arrays}), reply_to=asked)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        tree = get_object_tree(reply)
        self.session = state.start_session(run_id)
        self._store = partial(state.store_object, run_id, self.session)
        announced = Message(RecordDict(), reply_to=asked)
        announced.metadata.__dict__["_message_id"] = reply.object_id
        stored, missing = state.store_message_and_object_tree(announced, tree, self.session)
        assert stored
        contents = {name: each.deflate() for name, each in get_all_nested_objects(reply).items()}
        order = dict.fromkeys(each.object_id for each in iterate_object_tree(tree))
        self.left = [(name, contents[name]) for name in order if name in missing]

    def send(self, count=1, last=None):
        """The next objects, in a SuperNode's order; ``last``: so many stay behind."""
        for _ in range(count if last is None else len(self.left) - last):
            if self.left:
                assert self._store(*self.left.pop(0))


def sender(reply):
    assert reply.has_content()
    return reply.metadata.src_node_id


def test_the_others_are_taken_while_one_is_on_its_way_and_it_is_taken_when_it_is_across():
    link = SuperLink(3)
    replies = link.ask()
    slow, *others = [link.upload(node) for node in link.nodes]
    slow.send(3)
    for each in others:
        each.send(last=0)
    assert [sender(next(replies)), sender(next(replies))] == link.nodes[1:]  # without it this waits for ever
    link.looks.append(slow.send)
    (reply,) = replies
    assert sender(reply) == link.nodes[0]
    expected = np.random.default_rng(link.nodes[0]).standard_normal((LAYERS, VALUES), dtype=np.float32)
    np.testing.assert_array_equal(reply.content["arrays"]["layer3"].numpy(), expected[3])


def test_nine_slow_sites_of_sixteen_hold_up_nobody_in_this_round_and_the_next(caplog):
    link = SuperLink(16)
    slow, fast = link.nodes[:9], link.nodes[9:]
    replies = link.ask(timeout=5)
    on_their_way = [link.upload(node) for node in slow]
    for each in on_their_way:
        each.send(3)
    for node in fast:
        link.upload(node).send(last=0)
    with caplog.at_level(logging.INFO, logger="fedspact.server"):
        assert [sender(reply) for reply in replies] == fast
        assert link.now == 5  # the deadline, no more
        assert sum("no reply within 5 s; a later one is ignored" in line for line in caplog.messages) == 9
        replies = link.ask(fast, timeout=5)
        for node in fast:
            link.upload(node).send(last=0)
        assert [sender(reply) for reply in replies] == fast
        on_their_way[0].send(last=0)
        assert list(link.ask(fast[:1], timeout=1)) == []
    assert sum("came after its deadline and is ignored" in line for line in caplog.messages) == 1


def peak_bytes(sites):
    """What the ServerApp's side needed at most, while every site's reply came object by object at the same time."""
    link = SuperLink(sites)
    replies = link.ask()
    uploads = [link.upload(node) for node in link.nodes]
    link.looks.extend(each.send for each in uploads)
    gc.collect()
    tracemalloc.start()
    count = 0
    for reply in replies:
        assert sender(reply)
        count += 1
        del reply
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == sites
    return peak


def test_one_reply_is_in_memory_whether_4_or_64_are_on_their_way(caplog):
    caplog.set_level(logging.WARNING, logger="flwr")  # pytest keeps what is logged
    few, many = peak_bytes(4), peak_bytes(64)
    assert REPLY_BYTES < few < 3 * REPLY_BYTES  # Flower keeps the pieces until the arrays are together
    assert many - few < 0.5 * REPLY_BYTES  # 60 announcements; less than a model is asked


def test_a_reply_whose_last_object_overtook_another_is_waited_for_and_not_pulled_again_and_again():
    link = SuperLink(1)
    replies = link.ask()
    upload = link.upload(link.nodes[0])
    behind = upload.left.pop(2)
    upload.send(last=0)
    upload.left.append(behind)
    looks = []
    link.looks.append(lambda: looks.append(link.client.called.count("PullObject")))
    link.looks.append(lambda: len(looks) == 5 and upload.send())
    assert [sender(reply) for reply in replies] == link.nodes
    assert [after - before for before, after in pairwise(looks[:5])] == [1, 1, 1, 1]


def test_a_site_that_died_while_it_sent_is_told_as_an_error_and_no_longer_waited_for():
    link = SuperLink(1)
    replies = link.ask()
    upload = link.upload(link.nodes[0])
    upload.send(3)
    session = link.state._object_push_sessions[upload.session]

    def lapse():
        session.expires_at -= timedelta(days=1)

    link.looks.append(lapse)
    (reply,) = replies
    assert reply.has_error()
    assert "unavailable" in reply.error.reason


def test_an_error_of_a_pull_is_raised_and_the_reply_can_be_asked_for_again():
    link = SuperLink(1)
    (name,) = link.grid._inner._inner.push_messages([Message(RecordDict(), link.nodes[0], "train", group_id="1")])
    link.upload(link.nodes[0]).send(last=0)
    grid = link.grid._inner
    link.client.broken = True
    with pytest.raises(ConnectionError, match="SuperLink is gone"):
        grid.pull_messages([name])
    link.client.broken = False
    (reply,) = grid.pull_messages([name])
    assert sender(reply) == link.nodes[0]
    assert grid._whole._announced == {}
