"""A Grid that hands over each reply as it arrives, so that the server never holds more than one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

LOG = logging.getLogger("fedspact.server")
PAUSE_SHARE = 4.0  # times the last look's seconds: at most a fifth of the time is spent asking who has replied


class GridAround(Grid):
    """Passes everything on to the Grid that it wraps; its children change what they must."""

    def __init__(self, inner: Grid) -> None:
        self._inner = inner

    def set_run(self, run: Any) -> None:
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        return self._inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._inner.get_node_ids()

    def get_nodes(self) -> Any:
        return self._inner.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._inner.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self._inner.send_and_receive(messages, timeout=timeout)


class ArrivalGrid(GridAround):
    """Wraps Flower's Grid: ``send_and_receive`` pushes at once and returns an iterator over the replies.

    Flower's own collects all replies in a list first. Replies are pulled one message at a time, because pulling
    several ids together would load all that are ready. An in-process Grid works a site when its message is pulled;
    it needs no other treatment. Everything else is passed on to the wrapped Grid.

    The deadline counts from the push. What has arrived by then is still taken; who has not is named in the log and
    forgotten, and its reply, should it come after all, is pulled and thrown away during a later round.

    Args:
        inner: the Grid to wrap.
        poll_seconds: pause between two looks for replies; longer where a look, one small request a waiting site, takes
            long itself: with a thousand sites the questions would otherwise be all that the SuperLink does.
    """

    def __init__(
        self,
        inner: Grid,
        poll_seconds: float = 0.2,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(inner)
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._sleep = sleep
        self._late: dict[str, int] = {}  # message id -> node, of messages whose deadline has passed
        self.limit_seconds: Callable[[], float] | None = None  # a round's own deadline, where it is the shorter one
        self.name: Callable[[int], str] = "node {}".format  # of a node's site, for the log

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Push now; the iterator yields replies in order of arrival until all are there or the time is up.

        Args:
            messages: at most one for each node.
            timeout: seconds from now; None = wait for all.
        """
        batch = list(messages)  # Flower's Grid walks through them twice
        if not batch:
            return iter(())
        waiting = self._push(batch)
        if self.limit_seconds is not None:
            timeout = self.limit_seconds() if timeout is None else min(timeout, self.limit_seconds())
        deadline = None if timeout is None else self._clock() + timeout
        return self._arrivals(waiting, deadline, timeout)

    def _push(self, batch: list[Message]) -> dict[str, int]:
        """Message id -> node of what could be pushed; the rest is named in the log."""
        ids: list[str | None] = list(self._inner.push_messages(batch))
        if len(ids) == len(batch):
            nodes = {name: message.metadata.dst_node_id for name, message in zip(ids, batch, strict=True) if name}
        else:  # some Grids leave out what failed instead of putting None in its place
            known = {message.metadata.message_id: message.metadata.dst_node_id for message in batch}
            nodes = {name: known.get(name, 0) for name in ids if name}
        unsent = sorted({message.metadata.dst_node_id for message in batch} - set(nodes.values()))
        for node in unsent:
            LOG.warning("%s: the message could not be sent", self.name(node))
        return nodes

    def _arrivals(self, waiting: dict[str, int], deadline: float | None, timeout: float | None) -> Iterator[Message]:
        self._discard_late()
        while True:
            over = deadline is not None and self._clock() >= deadline  # asked before the look: the last look is whole
            looking = 0.0
            for name in list(waiting):
                began = self._clock()
                replies = list(self._inner.pull_messages([name]))
                if not replies:
                    looking += self._clock() - began
                else:
                    del waiting[name]
                while replies:
                    yield replies.pop(0)  # popped, so that nothing here keeps the reply alive
            if over or not waiting:
                break
            pause = max(self._poll_seconds, PAUSE_SHARE * looking)
            left = pause if deadline is None else deadline - self._clock()
            self._sleep(max(0.0, min(pause, left)))
        for node in waiting.values():
            LOG.warning("%s: no reply within %g s; a later one is ignored", self.name(node), timeout)
        self._late.update(waiting)

    def _discard_late(self) -> None:
        """Throw away replies that came after their deadline, so that they do not fill the SuperLink's store."""
        for name, node in list(self._late.items()):
            try:
                came = [reply.has_error() for reply in self._inner.pull_messages([name])]
            except Exception as error:  # the SuperLink may have dropped the message by now: nothing to throw away
                LOG.debug("node %d: late message %s is gone (%s)", node, name, error)
                came = [True]
            if came:
                del self._late[name]
            if True in came:
                LOG.info("%s: its late request has lapsed without a reply", self.name(node))
            if False in came:
                LOG.warning("%s: a reply came after its deadline and is ignored", self.name(node))
