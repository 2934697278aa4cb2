"""The server's half of secure aggregation: it passes keys and shares on, adds masked updates, and opens their sum.

What it learns of one site is a vector that is uniform for whoever does not know the masks. Sites that are lost after
they have dealt their shares are made up for by the others' shares, as long as enough are left; below that the round is
void and nothing was opened. A share that is not the one that was dealt is found out by its digest and left out by name.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from flwr.app import Array, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from server.aggregate import RejectedUpdate, check_names
from server.join import TTL_MARGIN_SECONDS, error_text
from server.masked import read_words
from server.records import Dropped
from server.wire import wire_bytes
from spact_models import agreement
from spact_models.agreement import BrokenProtocol, Member, Session
from spact_models.exchange import BRANCHES
from spact_models.ring import TAUGHT, FixedPoint, Words, mask
from spact_models.secure_fields import blob, blobs, member_of, names, untrusted_of
from spact_models.settings import Settings

LOG = logging.getLogger("fedspact.server")
PURPOSE = "secure."  # of the queries: secure.keys, secure.shares, secure.confirm, secure.unmask


class Void(Exception):
    """The sum cannot be opened, or says nothing; the message is the round's reason."""


@dataclass
class Dealt:
    """What a site has handed over for the others to keep, and by what it will be known again."""

    sealed: dict[str, bytes] = field(default_factory=dict)  # by receiver
    digests: dict[str, dict[str, bytes]] = field(default_factory=dict)  # kind -> holder -> digest
    commitment: bytes = b""


class SecureSum:
    """One round's sum.

    Args:
        settings: the run's.
        federation: the run's id.
        server_round: its number.
        shapes: every name of an update, with its shape.
        name: of a node's site.
        drop: told of each site that is lost on the way, with the reason.
    """

    def __init__(
        self,
        settings: Settings,
        federation: str,
        server_round: int,
        shapes: Mapping[str, tuple[int, ...]],
        name: Callable[[int], str],
        drop: Callable[[Dropped], None],
    ) -> None:
        self._settings = settings
        self._shapes = dict(shapes)
        self._name = name
        self._drop = drop
        self.session = Session.of(settings.secure, federation, server_round, b"", settings.coordinate_bound)
        self.members: list[Member] = []
        self.present: list[str] = []  # those who have dealt their shares
        self.summed: list[str] = []  # those whose masked updates are in the sum
        self.bytes_up = 0  # of the four short messages; the masked updates are counted with the round's replies
        self.bytes_down = 0
        self._nodes: dict[str, int] = {}
        self._dealt: dict[str, Dealt] = {}
        self._roster = b""  # the digest of the members with their keys
        self._sum: dict[str, Words] = {}

    @property
    def least(self) -> int:
        """So many sites must be left at every stage."""
        return self._least_of(len(self.members))

    def begin(self, grid: Grid, nodes: Iterable[int]) -> list[int]:
        """The first two messages: keys, then shares. Returns the nodes that are to play the round.

        A site whose keys most of the others do not trust is left out, and everything begins again without it, with
        those who have answered: who was lost on the way has been told of as lost and must not be in the sum too.

        Raises:
            Void: too few sites have come so far; nobody has trained for it.
        """
        asked = list(nodes)
        while True:
            self._exchange_keys(grid, asked)
            untrusted, answered = self._exchange_shares(grid)
            if not untrusted:
                break
            for name, reason in untrusted.items():
                self._lose(self._nodes[name], f"secure aggregation: most sites do not trust its keys: {reason}")
            asked = [node for name, node in self._nodes.items() if node in answered and name not in untrusted]
            # beginning again makes nobody's loss good: of those who are trusted as many must be left as without it
            self._demand(len(asked), "have answered with their shares", len(self.members) - len(untrusted))
        self._demand(len(self.present), "have dealt their shares")
        return [self._nodes[name] for name in self.present]

    def _exchange_keys(self, grid: Grid, nodes: Sequence[int]) -> None:
        self.session = replace(self.session, nonce=os.urandom(agreement.SESSION_BYTES))
        self.members, self._nodes, self._dealt = [], {}, {}

        def use(node: int, answer: ConfigRecord) -> None:
            self.members.append(member_of(answer, self._name(node)))
            self._nodes[self._name(node)] = node

        self._ask(grid, "keys", {node: {} for node in nodes}, use)
        self.members.sort(key=lambda member: member.name)
        self._roster = agreement.roster_digest(self.session, self.members)
        self._demand(len(self.members), "have sent their keys")

    def _exchange_shares(self, grid: Grid) -> tuple[dict[str, str], set[int]]:
        """Returns the members that more than half of the others call untrustworthy, with a reason each.

        And the nodes that have answered, with their shares or with whom they do not trust; the others are lost.
        """
        roster = {
            "names": [member.name for member in self.members],
            "cipher_keys": [member.cipher_key for member in self.members],
            "mask_keys": [member.mask_key for member in self.members],
            "signatures": [member.signature for member in self.members],
        }
        complaints: dict[int, dict[str, str]] = {}  # of a node: whom it does not trust, and why

        def use(node: int, answer: ConfigRecord) -> None:
            if "untrusted" in answer:
                complaints[node] = untrusted_of(answer, self._nodes)
            else:
                self._dealt[self._name(node)] = self._read_dealt(self._name(node), answer)

        self._ask(grid, "shares", dict.fromkeys(self._nodes.values(), roster), use)
        self.present = sorted(self._dealt)
        blamed: dict[str, list[str]] = {}
        for told in complaints.values():
            for name, reason in told.items():
                blamed.setdefault(name, []).append(reason)
        untrusted = {name: why[0] for name, why in blamed.items() if 2 * len(why) > len(self.members) - 1}
        if not untrusted:  # who trusts too few of the others stays out itself
            for node, told in complaints.items():
                whom = "; ".join(f"{name}: {reason}" for name, reason in told.items())
                self._lose(node, f"secure aggregation, shares: it does not trust {whom}")
        return untrusted, {*complaints, *(self._nodes[name] for name in self._dealt)}

    def request(self, node: int) -> ConfigRecord:
        """What a node needs to mask its update: who is there, and its neighbours' shares for it."""
        name = self._name(node)
        senders = [other for other in self._near(name) if other in self._dealt]
        return ConfigRecord(
            {
                "nonce": self.session.nonce,
                "round": self.session.server_round,
                "present": list(self.present),
                "senders": senders,
                "sealed": [self._dealt[sender].sealed[name] for sender in senders],
            }
        )

    def add(self, arrays: Mapping[str, Array], taught: Mapping[str, Array], node: int) -> None:
        """Add one masked update, in place.

        Raises:
            RejectedUpdate: it is not of the run's names and shapes, or comes twice; nothing has been added.
        """
        name = self._name(node)
        if name not in self._dealt or name in self.summed:
            raise RejectedUpdate("a masked update of a site that is not in this sum, or is in it already")
        check_names(arrays, list(self._shapes))
        check_names(taught, [TAUGHT])
        shapes = {**self._shapes, TAUGHT: (len(BRANCHES),)}
        words = {key: read_words(key, {**arrays, **taught}[key], shape) for key, shape in shapes.items()}
        for key, value in words.items():
            if key in self._sum:
                self._sum[key] += value
            else:
                self._sum[key] = value.copy()
        self.summed.append(name)

    def open(self, grid: Grid) -> tuple[dict[str, Tensor], int]:
        """The last two messages: the sites confirm who is in the sum, and give the shares that open it.

        Returns:
            The mean by name, float32, each branch's over the sites that taught it, and how many sites are in the sum.

        Raises:
            Void: too few answers, or a sum that cannot be one.
        """
        self._demand(len(self.summed), "have sent their masked updates")
        summed = sorted(self.summed)
        nodes = {node: {"summed": summed} for node in (self._nodes[name] for name in summed)}
        signatures: dict[str, bytes] = {}
        keys: dict[str, dict[str, bytes]] = {}  # owner -> holder -> share
        seeds: dict[str, dict[str, bytes]] = {}

        def confirmed(node: int, answer: ConfigRecord) -> None:
            signatures[self._name(node)] = blob(answer, "signature")

        self._ask(grid, "confirm", nodes, confirmed)
        self._demand(len(signatures), "have confirmed who is in the sum")
        signed = {"signers": sorted(signatures), "signatures": [signatures[name] for name in sorted(signatures)]}
        holders = {self._nodes[name]: signed for name in signatures}
        self._ask(grid, "unmask", holders, lambda node, answer: self._collect(self._name(node), answer, keys, seeds))
        self._unmask(seeds, keys)
        return self._mean(), len(summed)

    def told(self) -> dict[str, object]:
        """For the round's record."""
        lost = sorted(set(self.present) - set(self.summed))
        return {
            "members": len(self.members),
            "summed": len(self.summed),
            "lost": lost,  # after they had dealt their shares
            "needed": self.least,
            "neighbours": self.session.neighbours or max(0, len(self.members) - 1),
            "bytes": self.bytes_up + self.bytes_down,  # of the four short messages
        }

    # ---- the stages' parts

    def _ask(
        self,
        grid: Grid,
        stage: str,
        contents: Mapping[int, Mapping[str, Any]],
        use: Callable[[int, ConfigRecord], None],
    ) -> None:
        """Ask nodes; ``use`` gets each answer as it comes. Of bad and missing ones is told, and the rest goes on."""
        head = ConfigRecord({"purpose": PURPOSE + stage, "federation": self.session.federation})
        about: dict[str, Any] = {"nonce": self.session.nonce, "round": self.session.server_round}
        seconds = self._settings.secure.stage_seconds
        messages = []
        for node, content in contents.items():
            record = RecordDict({"config": head, "secure": ConfigRecord({**about, **content})})
            self.bytes_down += wire_bytes(record)
            ttl = seconds + TTL_MARGIN_SECONDS
            messages.append(Message(record, node, MessageType.QUERY, ttl=ttl, group_id=str(self.session.server_round)))
        waiting = set(contents)
        for reply in grid.send_and_receive(messages, timeout=seconds):
            node = reply.metadata.src_node_id
            if node not in waiting:
                continue
            waiting.discard(node)
            try:
                if reply.has_error():
                    raise BrokenProtocol(error_text(reply))
                self.bytes_up += wire_bytes(reply.content)
                answer = reply.content.config_records.get("secure")
                if answer is None:
                    raise BrokenProtocol("the reply lacks the record 'secure'")
                use(node, answer)
            except BrokenProtocol as fault:
                self._lose(node, f"secure aggregation, {stage}: {fault}")
        for node in sorted(waiting):
            self._lose(node, f"secure aggregation, {stage}: no answer within {seconds:g} s", late=True)

    def _lose(self, node: int, reason: str, late: bool = False) -> None:
        self._drop(Dropped(node, self._name(node), reason, late=late))

    def _least_of(self, members: int) -> int:
        return max(self._settings.rounds.min_sites, agreement.needed(self.session.threshold, members))

    def _demand(self, count: int, what: str, members: int | None = None) -> None:
        least = self._least_of(len(self.members) if members is None else members)
        if count < least:
            raise Void(f"secure aggregation: {count} sites {what}, {least} needed")

    def _near(self, name: str) -> list[str]:
        everybody = [member.name for member in self.members]
        return agreement.neighbours_of(name, everybody, self.session.neighbours, self._roster)

    def _holders(self, name: str) -> list[str]:
        return sorted([*self._near(name), name])

    def _read_dealt(self, name: str, answer: ConfigRecord) -> Dealt:
        near, holders = self._near(name), self._holders(name)
        sealed = blobs(answer, "sealed", len(near))
        digests = {
            kind: blobs(answer, f"{kind}_digests", len(holders), agreement.KEY_BYTES) for kind in ("key", "seed")
        }
        if answer.get("holders") != near:
            raise BrokenProtocol("shares dealt to others than its neighbours")
        return Dealt(
            dict(zip(near, sealed, strict=True)),
            {kind: dict(zip(holders, values, strict=True)) for kind, values in digests.items()},
            blob(answer, "commitment", agreement.KEY_BYTES),
        )

    def _collect(
        self,
        holder: str,
        answer: ConfigRecord,
        keys: dict[str, dict[str, bytes]],
        seeds: dict[str, dict[str, bytes]],
    ) -> None:
        """One site's shares, each held against the digest that its owner gave."""
        for kind, kept in (("key", keys), ("seed", seeds)):
            owners = names(answer, f"{kind}_owners")
            shares = blobs(answer, f"{kind}_shares", len(owners), agreement.KEY_BYTES)
            for owner, share in zip(owners, shares, strict=True):
                dealt = self._dealt.get(owner)
                expected = None if dealt is None else dealt.digests[kind].get(holder)
                found = agreement.share_digest(self.session, kind, owner, holder, share)
                if expected is None or not agreement.same(found, expected):
                    LOG.warning("site %s: its share of %s's %s is not the one that was dealt", holder, owner, kind)
                    continue
                kept.setdefault(owner, {})[holder] = share

    def _unmask(self, seeds: Mapping[str, Mapping[str, bytes]], keys: Mapping[str, Mapping[str, bytes]]) -> None:
        """Take every mask out of the sum that does not cancel."""
        members = {member.name: member for member in self.members}
        secrets = {name: self._secret(name, "seed", seeds.get(name, {})) for name in self.summed}
        lost = [name for name in self.present if name not in self.summed and self._near_summed(name)]
        private = {name: self._secret(name, "key", keys.get(name, {})) for name in lost}
        for name, seed in secrets.items():
            if not agreement.same(agreement.commitment(seed, self.session), self._dealt[name].commitment):
                raise Void(f"secure aggregation: the shares that {name} dealt do not give the seed it committed to")
            mask(self._sum, agreement.self_mask_key(seed, self.session), -1)
        for name, key in private.items():
            if agreement.public_key(key) != members[name].mask_key:
                raise Void(f"secure aggregation: the shares that {name} dealt do not give the key it announced")
            for other in self._near_summed(name):  # `other` has added this mask, or taken it away, for nobody
                pair = agreement.mask_key(key, members[other].mask_key, self.session, (name, other))
                mask(self._sum, pair, -1 if other < name else 1)

    def _near_summed(self, name: str) -> list[str]:
        return [other for other in self._near(name) if other in self.summed]

    def _secret(self, owner: str, kind: str, shares: Mapping[str, bytes]) -> bytes:
        holders = self._holders(owner)
        threshold = agreement.needed(self.session.threshold, len(holders))
        if len(shares) < threshold:
            raise Void(f"secure aggregation: {len(shares)} shares of {owner}'s {kind}, {threshold} needed")
        chosen = dict(sorted(shares.items())[:threshold])
        return agreement.combine(chosen, holders)

    def _mean(self) -> dict[str, Tensor]:
        """The sum as numbers, and each branch's divided by how many taught it."""
        grid, count = FixedPoint(self.session.bound, len(self.members)), len(self.summed)
        taught = dict(zip(BRANCHES, (int(value) for value in self._sum.pop(TAUGHT)), strict=True))
        odd = [f"{prefix[:-1]} {value}" for prefix, value in taught.items() if value > count]
        odd += [name for name, words in self._sum.items() if not odd and not grid.possible(words, count)]
        if odd:
            raise Void(
                f"secure aggregation: what was opened is no sum of {count} updates ({odd[0]}): a site has sent what no "
                "update can be. Nobody can tell which one"
            )
        out = {}
        for name in list(self._sum):
            prefix = next(prefix for prefix in BRANCHES if name.startswith(prefix))
            words = self._sum.pop(name)
            if taught[prefix]:
                out[name] = (grid.decoded(words) / taught[prefix]).to(torch.float32)
        return out
