"""Who takes part: sites introduce themselves, and the list of actions is agreed by name before round 1."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from server.records import Dropped
from spact_models.errors import UserError
from spact_models.seeds import seed_for

LOG = logging.getLogger("fedspact.server")
LONGEST_NAME = 100  # characters of a site's or an action's name
INTRODUCTION_SECONDS = 300.0  # a site answers from its table of rows; it reads no video for it
TTL_MARGIN_SECONDS = 30.0  # a request outlives its deadline by this, so that the last look still finds the reply


@dataclass(frozen=True)
class SiteCard:
    """What a site says of itself; ``classes`` is empty when it has no action labels."""

    node: int
    name: str
    classes: tuple[str, ...]
    train_rows: int
    test_rows: int


def wait_for_nodes(
    grid: Grid,
    minimum: int,
    limit_seconds: float,
    poll_seconds: float = 1.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[int]:
    """The connected nodes, sorted, as soon as there are ``minimum``; those there are when the time is up."""
    deadline = clock() + limit_seconds
    said = -1
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= minimum or clock() >= deadline:
            return nodes
        if len(nodes) != said:
            said = len(nodes)
            LOG.info("waiting for sites: %d of %d connected", said, minimum)
        sleep(min(poll_seconds, max(0.0, deadline - clock())))


class Roster:
    """The sites that have introduced themselves, and the agreed class list.

    Args:
        federation: the run's own id; a site keeps its state by it.
        wanted: ``action.classes``, or empty: the labelled sites' common list is taken.
        timeout_seconds: how long a site may take to introduce itself.
        classes: the list that a resumed run has agreed on before.
    """

    def __init__(
        self, federation: str, wanted: Sequence[str], timeout_seconds: float, classes: Sequence[str] = ()
    ) -> None:
        self.federation = federation
        self.cards: dict[int, SiteCard] = {}
        self.classes = tuple(classes)
        self._wanted = tuple(wanted)
        self._timeout_seconds = min(timeout_seconds, INTRODUCTION_SECONDS)
        self._refused: set[int] = set()

    def draw(self, nodes: Iterable[int], most: int, *seed: int | str) -> list[int]:
        """The known ones of these nodes, at most so many (0 = all): drawn by their sites' names, as the seed says.

        Whoever knows the run's seed knows the draw: it saves work and amplifies no privacy.
        """
        known = sorted(node for node in nodes if node in self.cards)
        if not most or len(known) <= most:
            return known
        return sorted(sorted(known, key=lambda node: seed_for(*seed, self.cards[node].name))[:most])

    def meet(self, grid: Grid, nodes: Iterable[int]) -> list[Dropped]:
        """Ask the nodes not met yet who they are; returns those left out, with reasons.

        A node that does not answer properly is asked again next time; one whose classes do not fit is left out for
        good. Before the list is agreed (:meth:`agree`) every list fits.
        """
        nodes = list(nodes)
        new = [node for node in nodes if node not in self.cards and node not in self._refused]
        held = {self.cards[node].name: node for node in nodes if node in self.cards}
        cards, dropped = introduce(grid, new, self.federation, self._timeout_seconds)
        for card in cards:
            reason = mismatch(card, self.classes, bool(self._wanted)) if self.classes else None
            if card.name in held:  # not for good: the other one may be the same site's old connection
                dropped.append(Dropped(card.node, card.name, _taken(card.name, held[card.name])))
            elif reason is None:
                self._forget(card.name)
                self.cards[card.node], held[card.name] = card, card.node
                LOG.info("site %s (node %d) joins: %d + %d rows", card.name, card.node, card.train_rows, card.test_rows)
            else:
                self._refused.add(card.node)
                dropped.append(Dropped(card.node, card.name, reason))
        for drop in dropped:
            LOG.warning("site %s (node %d) is left out: %s", drop.name, drop.node, drop.reason)
        return dropped

    def _forget(self, name: str) -> None:
        """Drop the card of a node that is gone and whose site has come back as another node."""
        for node in [node for node, card in self.cards.items() if card.name == name]:
            LOG.info("site %s was node %d before", name, node)
            del self.cards[node]

    def agree(self) -> tuple[str, ...]:
        """Fix the class list from the sites met so far.

        Raises:
            UserError: the lists differ, or nobody has labels.
        """
        if not self.classes:
            self.classes = agree_classes(list(self.cards.values()), self._wanted)
        LOG.info("actions: %s", ", ".join(self.classes))
        return self.classes

    def name(self, node: int) -> str:
        """The site's name, or its node's number when it is not known."""
        return self.cards[node].name if node in self.cards else f"node {node}"


def _taken(name: str, node: int) -> str:
    return (
        f"node {node} is connected under the name {name} too, and names must differ: set another `name` in one "
        "site.yaml; a site that has restarted is taken in once its old connection has lapsed"
    )


def introduce(
    grid: Grid, nodes: Sequence[int], federation: str, timeout: float
) -> tuple[list[SiteCard], list[Dropped]]:
    """Ask nodes who they are and what they have (a query message); every node ends in one of the two lists."""
    if not nodes:
        return [], []
    content = RecordDict({"config": ConfigRecord({"federation": federation, "purpose": "join"})})
    messages = [
        Message(content, node, MessageType.QUERY, ttl=timeout + TTL_MARGIN_SECONDS, group_id="join") for node in nodes
    ]
    answers: dict[int, SiteCard | Dropped] = {}
    for reply in grid.send_and_receive(messages, timeout=timeout):
        node = reply.metadata.src_node_id
        if node in nodes and node not in answers:
            answers[node] = read_card(node, reply)
    for node in nodes:
        answers.setdefault(node, Dropped(node, f"node {node}", f"did not introduce itself within {timeout:g} s"))
    cards = [answer for answer in answers.values() if isinstance(answer, SiteCard)]
    dropped = [answer for answer in answers.values() if isinstance(answer, Dropped)]
    return sorted(cards, key=lambda card: (card.name, card.node)), dropped


def read_card(node: int, reply: Message) -> SiteCard | Dropped:
    """The card in a reply to a query, checked: the reply comes from outside."""
    unknown = f"node {node}"
    if reply.has_error():
        return Dropped(node, unknown, error_text(reply))
    site = reply.content.config_records.get("site")
    if site is None:
        return Dropped(node, unknown, "its introduction lacks the record 'site'")
    classes, rows = site.get("classes"), (site.get("train_rows"), site.get("test_rows"))
    if not isinstance(classes, list) or not all(
        isinstance(name, str) and 0 < len(name) <= LONGEST_NAME for name in classes
    ):
        return Dropped(node, unknown, f"classes = {classes!r:.200}, must be a list of names")
    if len(set(classes)) != len(classes):
        return Dropped(node, unknown, f"classes = {classes!r:.200}, must not name an action twice")
    if not all(isinstance(count, int) and count >= 0 for count in rows):
        return Dropped(node, unknown, f"train_rows, test_rows = {rows!r:.200}, must be whole numbers from 0")
    train_rows, test_rows = (count for count in rows if isinstance(count, int))
    return SiteCard(node, site_name(reply, node), tuple(str(name) for name in classes), train_rows, test_rows)


def site_name(reply: Message, node: int) -> str:
    """The name in a reply's record ``site``, or the node's number when there is none."""
    site = reply.content.config_records.get("site")
    name = site.get("name") if site is not None else None
    return name if isinstance(name, str) and 0 < len(name) <= LONGEST_NAME else f"node {node}"


def error_text(reply: Message) -> str:
    """The reason in an error reply; of a traceback the last line, which says what happened."""
    lines = [line.strip() for line in (reply.error.reason or "no reason given").splitlines() if line.strip()]
    return f"error {reply.error.code}: {lines[-1] if lines else 'no reason given'}"[:500]


def agree_classes(cards: Sequence[SiteCard], wanted: Sequence[str]) -> tuple[str, ...]:
    """The one list of actions: ``wanted`` if given, else the labelled sites' common list, sorted.

    Raises:
        UserError: a site's list does not fit (naming both lists and the sites), or nobody has labels.
    """
    labelled = sorted((card for card in cards if card.classes), key=lambda card: (card.name, card.node))
    if not wanted and not labelled:
        raise UserError(
            f"action classes: none of the {len(cards)} sites has action labels and action.classes is empty. "
            'Set action.classes = "first,second,...", or have one labelled site join.'
        )
    classes = tuple(wanted) or tuple(sorted(labelled[0].classes))
    for card in labelled:
        reason = mismatch(card, classes, bool(wanted))
        if reason is None:
            continue
        if wanted:
            remedy = "Add the missing names to action.classes, or take them out of the site's table."
        else:
            union = ",".join(sorted({name for each in labelled for name in each.classes}))
            same = ", ".join(each.name for each in labelled if set(each.classes) == set(classes))
            reason = f"{reason} (agreed so far by: {same})"
            remedy = f'Set action.classes = "{union}", or make the sites\' lists equal.'
        raise UserError(f"action classes: {reason}. {remedy}")
    return classes


def mismatch(card: SiteCard, classes: Sequence[str], subset: bool) -> str | None:
    """Why a site's list does not fit the federation's, naming both; None when it does.

    Args:
        subset: True when ``action.classes`` fixes the list: a site may then lack actions, but not add any.
    """
    if not card.classes:
        return None
    odd = sorted(set(card.classes) - set(classes))
    lacking = [] if subset else sorted(set(classes) - set(card.classes))
    if not odd and not lacking:
        return None
    said = [f"{word} {', '.join(names)}" for word, names in (("adds", odd), ("lacks", lacking)) if names]
    theirs, ours = ", ".join(sorted(card.classes)), ", ".join(sorted(classes))
    return f"site {card.name} has [{theirs}], the federation has [{ours}]: it {' and '.join(said)}"
