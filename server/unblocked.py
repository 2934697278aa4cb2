"""A Grid whose pulls return in time, however slow the link is over which a reply is still coming."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from server.grid import GridAround

PATIENCE_SECONDS = 2.0  # a reply that lies at the SuperLink is here by then, or soon after
AT_ONCE = 8  # pulls that may hang; each may hold one reply in memory when it ends


class UnblockedGrid(GridAround):
    """Wraps Flower's Grid: a pull that hangs goes on beside the others instead of holding them up.

    Flower announces a reply before its arrays have arrived, and a pull (flwr 1.41) does not return before the last of
    them has: one site behind a slow link would hold up every other site's reply, and the deadline. Here such a pull
    is left to a thread of its own after ``patience_seconds`` and answered with "nothing yet" until it is done. As long
    as nothing hangs, one pull runs at a time.

    Args:
        inner: the Grid to wrap. Its pulls are called from threads, one at a time unless some hang.
        patience_seconds: how long a new pull is waited for.
        at_once: how many pulls may hang; while so many do, no other is begun.
    """

    def __init__(self, inner: Grid, patience_seconds: float = PATIENCE_SECONDS, at_once: int = AT_ONCE) -> None:
        super().__init__(inner)
        self._patience_seconds = patience_seconds
        self._at_once = at_once
        self._hanging: dict[str, _Pull] = {}

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are wholly here; a message whose pull hangs has none yet.

        Raises:
            Exception: what the wrapped Grid's pull raised.
        """
        return [reply for name in message_ids for reply in self._pulled(name)]

    def _pulled(self, name: str) -> list[Message]:
        pull = self._hanging.pop(name, None)
        if pull is None:
            if len(self._hanging) >= self._at_once:
                return []
            pull = _Pull(self._inner, name)
            pull.done.wait(self._patience_seconds)
        if not pull.done.is_set():
            self._hanging[name] = pull
            return []
        if pull.error is not None:
            raise pull.error
        return pull.replies


class _Pull:
    """One pull in a thread that does not keep the process alive."""

    def __init__(self, grid: Grid, name: str) -> None:
        self.done = threading.Event()
        self.replies: list[Message] = []
        self.error: Exception | None = None
        threading.Thread(target=self._run, args=(grid, name), daemon=True).start()

    def _run(self, grid: Grid, name: str) -> None:
        try:
            self.replies = list(grid.pull_messages([name]))
        except Exception as error:  # handed over to whoever asks for the reply
            self.error = error
        self.done.set()
