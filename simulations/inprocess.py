"""A Flower Grid that calls the ClientApp directly: the real strategy and the real apps, without processes or Ray.

Sites run one after the other, each when its reply is asked for, so at any time one update is in memory; or, on a
CPU's cores, some at a time, each begun when its reply or that of one before it is asked for.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from spact_models.workshop import Workshop

UNKNOWN_ERROR = 0


def become_task(run_id: int = 1) -> None:
    """Tell flwr who creates messages here, as its runtimes do before they call an app.

    flwr 1.41 keeps this in a private class; this is the only line of the project that needs it, hence the pin in
    pyproject.toml.
    """
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1


class InProcessGrid(Grid):
    """Nodes are entries of ``node_configs``; node ids are 1, 2, ... in that order.

    Args:
        client_app: the ClientApp that every node runs.
        node_configs: each node's own configuration, as ``flower-supernode --node-config`` would give it.
        run_config: the flat run configuration that both sides see.
        before_site: called with the node's number before it works (progress bars).
        workshop: where sites work at the same time; as many as it has workers, and one more waits or is done. None:
            one after the other. What a site replies does not depend on it.
    """

    def __init__(
        self,
        client_app: ClientApp,
        node_configs: Iterable[Mapping[str, Any]],
        run_config: Mapping[str, Any],
        before_site: Callable[[int, str], None] | None = None,
        workshop: Workshop | None = None,
    ) -> None:
        self._client_app = client_app
        self._before_site = before_site
        self._workshop = workshop or Workshop(torch.device("cpu"), most=1)
        self._contexts = {
            number: Context(1, number, dict(config), RecordDict(), dict(run_config))
            for number, config in enumerate(node_configs, start=1)
        }
        self._waiting: dict[str, Message] = {}
        self._begun: dict[str, Callable[[], Message]] = {}
        become_task()

    def set_run(self, run: Any) -> None:
        """Nothing to set: there is one run."""

    @property
    def run(self) -> Any:
        return None

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            name = uuid.uuid4().hex
            self._waiting[name] = message
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for name in message_ids:
            if name in self._waiting or name in self._begun:
                yield self._reply(name)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:  # noqa: ARG002
        """Replies as they come, one site at a time; in one process nobody is late."""
        return self.pull_messages(self.push_messages(messages))

    def _reply(self, name: str) -> Message:
        most = self._workshop.workers + (self._workshop.workers > 1)
        for other in [name, *self._waiting]:
            if other in self._waiting and (other == name or len(self._begun) < most):
                message = self._waiting.pop(other)
                self._begun[other] = self._workshop.start(partial(self._answer, message))
        return self._begun.pop(name)()

    def _answer(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        if self._before_site is not None:
            self._before_site(context.node_id, message.metadata.message_type)
        try:
            return self._client_app(message, context)
        except Exception as error:  # as a SuperNode does: a crash of the app is an error reply, not the end of the run
            return Message(Error(UNKNOWN_ERROR, f"{type(error).__name__}: {error}"), reply_to=message)
