"""One open round: whom it asked, who has answered, and whether a reply belongs to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from flwr.app import Message, Metadata, RecordDict

from server.aggregate import RejectedUpdate
from server.join import error_text
from server.records import Dropped, RoundRecord, SiteRecord, weighted_means
from server.wire import wire_bytes

if TYPE_CHECKING:
    from server.secure_sum import SecureSum


class Observer(Protocol):
    """Who watches a run while it goes on (server/status.py)."""

    def opened(self, current: Round, names: Iterable[str]) -> None:
        """The requests of a round are about to leave for these sites."""

    def heard(self, site: SiteRecord) -> None:
        """A valid reply came."""

    def dropped(self, drop: Dropped) -> None:
        """A site is left out of the round."""

    def closed(self, record: RoundRecord) -> None:
        """The round is over, and on the disk."""


@dataclass
class Round:
    """One round while it lasts."""

    kind: str  # "train" | "evaluate"
    number: int  # 1-based
    phase: str = ""
    deadline_seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)
    sent: float = field(default_factory=time.monotonic)  # when the requests left
    asked: dict[int, int] = field(default_factory=dict)  # node -> serialised bytes sent to it
    requests: dict[int, Metadata] = field(default_factory=dict)  # node -> its request's; the Grid puts the id in
    sites: dict[int, SiteRecord] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    answered: set[int] = field(default_factory=set)
    bytes_up: int = 0
    secure: SecureSum | None = None  # the round's masked sum, where there is one

    def node_of(self, reply: Message) -> int:
        """The node that a reply speaks for: its sender, or whom the SuperLink says it can no longer reach."""
        metadata = reply.metadata
        if reply.has_error() and metadata.src_node_id not in self.asked:
            for node, request in self.requests.items():
                if request.message_id and request.message_id == metadata.reply_to_message_id:
                    return node
        return metadata.src_node_id

    def take(
        self, reply: Message, node: int, name: str, use: Callable[[RecordDict, int], dict[str, float]]
    ) -> SiteRecord:
        """Check where a reply comes from, use its content (``use`` gets it and its node), note the site as heard.

        Raises:
            RejectedUpdate: the reply does not belong here, or cannot be used; the message says why.
        """
        bytes_up = wire_bytes(reply.content) if reply.has_content() else 0
        self.bytes_up += bytes_up
        self._check_provenance(reply, node)
        self.answered.add(node)
        if reply.has_error():
            raise RejectedUpdate(error_text(reply))
        metrics = use(reply.content, node)
        seconds = time.monotonic() - self.sent
        site = SiteRecord(node, name, metrics, self.asked[node], bytes_up, round(seconds, 3))
        self.sites[node] = site
        return site

    def _check_provenance(self, reply: Message, node: int) -> None:
        """A reply counts when its node was asked, in this round, for this, and has not replied before."""
        metadata = reply.metadata
        if node not in self.asked:
            raise RejectedUpdate(error_text(reply) if reply.has_error() else "was not asked in this round")
        if node in self.answered:
            raise RejectedUpdate("a second reply in one round; the first one counts")
        if reply.has_error():
            return
        if metadata.group_id != str(self.number):
            raise RejectedUpdate(f"a stale reply of round {metadata.group_id!r:.20}, this is round {self.number}")
        if metadata.message_type != self.kind:
            raise RejectedUpdate(f"a reply to {metadata.message_type!r:.40}, asked was {self.kind!r}")

    def silent(self) -> list[int]:
        """The nodes that were asked and of which nothing has come, good or bad."""
        return sorted(self.asked.keys() - self.answered - {drop.node for drop in self.dropped})

    def record(self, void: bool, reason: str) -> RoundRecord:
        """What the closed round was."""
        sites = tuple(self.sites[node] for node in sorted(self.sites))
        return RoundRecord(
            kind=self.kind,
            round=self.number,
            phase=self.phase,
            void=void,
            reason=reason,
            metrics=weighted_means(site.metrics for site in sites),
            sites=sites,
            dropped=tuple(self.dropped),
            bytes_down=sum(self.asked.values()) + (self.secure.bytes_down if self.secure else 0),
            bytes_up=self.bytes_up + (self.secure.bytes_up if self.secure else 0),
            secure=self.secure.told() if self.secure else {},
            seconds=time.monotonic() - self.started,
            deadline_seconds=self.deadline_seconds,
        )
