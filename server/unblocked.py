"""A Grid whose pulls return at once, however slow the link is over which a reply is still coming."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.serverapp import Grid
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid.http_grid import HttpGrid

from server.grid import GridAround


class UnblockedGrid(GridAround):
    """Wraps Flower's Grid: a reply is pulled when all of it lies at the SuperLink, and until then there is none.

    Flower announces a reply before its arrays have arrived, and a pull (flwr 1.41) does not return before the last of
    them has; meanwhile it keeps what came so far. One site behind a slow link would hold up every other site's reply
    and the deadline, and many slow sites side by side would fill the memory. Here the announcement is kept, and each
    pull first asks for the object that a site sends last, which is small. Until that is there nothing of the reply is
    fetched. So nothing hangs, and one reply at a time is in memory, whole or in part, however many sites are slow.

    Only the Grid that speaks to a SuperLink is treated so; any other has its replies whole and is passed on to. It
    reaches into one private name of flwr, hence the pin in pyproject.toml.

    Args:
        inner: the Grid to wrap.
    """

    def __init__(self, inner: Grid) -> None:
        super().__init__(inner)
        self._whole: _WholeReplies | None = None
        if isinstance(inner, HttpGrid):
            self._whole = _WholeReplies(inner._runtime_client)
            inner._client = cast(RuntimeHttpClient, self._whole)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are wholly here; one that is still on its way is none yet.

        Raises:
            Exception: what the wrapped Grid's pull raised. The reply can be asked for again.
        """
        return [reply for name in message_ids for reply in self._pulled(name)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError("an UnblockedGrid is pulled from; wrap it in an ArrivalGrid")

    def _pulled(self, name: str) -> list[Message]:
        if self._whole is None:
            return list(self._inner.pull_messages([name]))
        try:
            replies = list(self._inner.pull_messages([name]))
        except _NotYet as missing:
            self._whole.await_object(name, missing.object_id)
            return []
        self._whole.forget(name)
        return replies


class _NotYet(Exception):
    """An object of a reply is still on its way to the SuperLink. Flower's pull ends with it and drops what it has."""

    def __init__(self, object_id: str) -> None:
        super().__init__(object_id)
        self.object_id = object_id


class _WholeReplies:
    """Flower's client of the SuperLink, but where an object is missing it says so and lets nobody wait for it.

    A SuperLink announces a reply once. The announcement (hashes) is kept until all of the reply has been pulled.
    """

    def __init__(self, client: RuntimeHttpClient) -> None:
        self._client = client
        self._announced: dict[str, PullAppMessagesResponse] = {}
        self._awaited: dict[str, str] = {}  # message id -> the object to ask for before any other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        """The announcement of one message's reply, when the object that is awaited has come.

        Raises:
            _NotYet: it has not.
        """
        (name,) = request.message_ids
        response = self._announced.get(name)
        if response is None:
            response = self._client.PullMessages(request)
            if not response.messages_list:
                return response
            self._announced[name] = response
            self._awaited[name] = response.message_object_trees[0].object_id  # a site sends it after all its children
        run_id, node = response.messages_list[0].metadata.run_id, Node(node_id=SUPERLINK_NODE_ID)
        self.PullObject(PullObjectRequest(node=node, run_id=run_id, object_id=self._awaited[name]))
        return response

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        """One object.

        Raises:
            _NotYet: it is still on its way. One that will never come is not found instead.
        """
        response = self._client.PullObject(request)
        if response.object_found and not response.object_available:
            raise _NotYet(request.object_id)
        return response

    def await_object(self, name: str, object_id: str) -> None:
        """Sites send two objects at a time: the last may overtake one, which is then what to wait for."""
        self._awaited[name] = object_id

    def forget(self, name: str) -> None:
        self._announced.pop(name, None)
        self._awaited.pop(name, None)
