"""The site's half of secure aggregation: five messages, and what it answers to each.

1. ``keys``: two fresh keys, signed with the registered one.
2. ``shares``: everybody's keys come; the site checks the signatures, and deals shares of its two secrets (its mask
   key, and the seed of a mask of its own), sealed for one neighbour each.
3. the round itself: the update, masked with its own mask and one for each neighbour.
4. ``confirm``: whose masked updates have arrived; the site signs that.
5. ``unmask``: the others' signatures under the same list come; only then the site gives its share of the *seed* of each
   site in the sum and of the *mask key* of each that is lost. Never both of one site: both together are its update.

The stages follow each other once and in this order; what is left of an execution that broke off is thrown away with
the next ``keys``. Once a round's sum has been opened, the site takes part in no other sum of that round: two sums of
the same updates over different sites would tell single ones.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord
from torch import Tensor

from client.membership import Membership
from spact_models import agreement
from spact_models.agreement import BrokenProtocol, Member, Session
from spact_models.errors import UserError
from spact_models.files import OWNER_ALONE, write_file
from spact_models.noise import ROUNDING_HEADROOM, SecretStream
from spact_models.ring import TAUGHT, FixedPoint, Words, encoded_update, mask
from spact_models.secure_fields import blob, blobs, members_of, names
from spact_models.settings import Settings

log = logging.getLogger("fedspact.site")
FILE = "secure.json"


@dataclass
class Execution:
    """What the site keeps of one execution between two messages. Secrets: the file is for its owner alone."""

    session: dict[str, Any] = field(default_factory=dict)
    stage: str = ""  # the last one answered
    cipher_key: str = ""  # private ones, in hex as everything that is bytes
    mask_key: str = ""
    seed: str = ""
    members: list[dict[str, str]] = field(default_factory=list)
    present: list[str] = field(default_factory=list)  # who has dealt shares; masks are agreed with the neighbours there
    key_shares: dict[str, str] = field(default_factory=dict)  # by owner
    seed_shares: dict[str, str] = field(default_factory=dict)
    summed: list[str] = field(default_factory=list)  # signed in `confirm`
    opened: int = 0  # the latest round whose sum this site helped to open


class Vault:
    """The execution on the disk; written before an answer leaves, so that no crash lets a stage be repeated."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE

    def read(self) -> Execution:
        if not self._file.exists():
            return Execution()
        return Execution(**json.loads(self._file.read_text(encoding="utf-8")))

    def write(self, execution: Execution) -> None:
        remedy = "free that disk or set `state` in site.yaml"
        write_file(self._file, json.dumps(asdict(execution)), remedy, mode=OWNER_ALONE)


class SecureSite:
    """One site in one federation's secure sums.

    Args:
        membership: its key and those of the others.
        vault: where its secrets lie between two messages.
        settings: the run's, as this site got them.
        federation: the run's id.
        least: so many sites must be in a sum at least, whatever the run says (``refuse.min_sites``).
    """

    def __init__(self, membership: Membership, vault: Vault, settings: Settings, federation: str, least: int) -> None:
        self._membership = membership
        self._vault = vault
        self._settings = settings
        self._federation = federation
        self._least = max(2, least, settings.rounds.min_sites)
        self._name = membership.site

    def keys(self, request: ConfigRecord) -> dict[str, Any]:
        """Begin an execution: fresh keys, signed."""
        session = self._session(request)
        kept = self._vault.read()
        if session.server_round <= kept.opened:
            raise UserError(
                f"refused: the sum of round {kept.opened} has been opened with this site's help; another sum of round "
                f"{session.server_round} could be subtracted from it. The run goes on with the next round"
            )
        secret, masking = agreement.new_key(), agreement.new_key()
        seed = os.urandom(agreement.KEY_BYTES)
        fresh = Execution(_told(session), "keys", secret.hex(), masking.hex(), seed.hex(), opened=kept.opened)
        self._vault.write(fresh)
        member = Member(self._name, agreement.public_key(secret), agreement.public_key(masking), b"")
        signature = self._membership.sign(member.text(session))
        return {
            "name": self._name, "cipher_key": member.cipher_key, "mask_key": member.mask_key, "signature": signature
        }  # fmt: skip

    def shares(self, request: ConfigRecord) -> dict[str, Any]:
        """Check who is in it, and deal the shares."""
        execution, session = self._at("keys", request)
        members = members_of(request)
        self._check_own(execution, members)
        untrusted = self._untrusted(session, members)
        if untrusted:  # the server may begin again without them
            return {"untrusted": sorted(untrusted), "reasons": [untrusted[name] for name in sorted(untrusted)]}
        self._check_enough([member.name for member in members], 0)
        by_name = {member.name: member for member in members}
        digest = agreement.roster_digest(session, members)
        near = agreement.neighbours_of(self._name, by_name, session.neighbours, digest)
        holders = sorted([*near, self._name])
        threshold = agreement.needed(session.threshold, len(holders))
        secret, seed = bytes.fromhex(execution.cipher_key), bytes.fromhex(execution.seed)
        keys = agreement.split(bytes.fromhex(execution.mask_key), threshold, holders)
        seeds = agreement.split(seed, threshold, holders)
        execution.stage, execution.members = "shares", [_hex(member) for member in members]
        execution.key_shares[self._name] = keys[self._name].hex()
        execution.seed_shares[self._name] = seeds[self._name].hex()
        self._vault.write(execution)
        sealed = [
            agreement.seal(secret, by_name[other].cipher_key, session, self._name, other, keys[other] + seeds[other])
            for other in near
        ]
        digest_of = agreement.share_digest
        return {
            "holders": near,
            "sealed": sealed,
            "key_digests": [digest_of(session, "key", self._name, holder, keys[holder]) for holder in holders],
            "seed_digests": [digest_of(session, "seed", self._name, holder, seeds[holder]) for holder in holders],
            "commitment": agreement.commitment(seed, session),
        }

    def receive(self, request: ConfigRecord) -> None:
        """The neighbours' shares, before the round is played. After this no other request of the round is played."""
        execution, session = self._at("shares", request)
        members = {member.name: member for member in _members(execution)}
        present = names(request, "present")
        if not set(present) <= set(members) or self._name not in present:
            raise BrokenProtocol("present: names somebody who is no member, or leaves this site out")
        self._check_enough(present, agreement.needed(session.threshold, len(members)))
        near = self._near(session, execution)
        senders = names(request, "senders")
        sealed = blobs(request, "sealed", len(senders))
        if senders != [name for name in near if name in present]:
            raise BrokenProtocol("senders: must be this site's neighbours among those present")
        secret = bytes.fromhex(execution.cipher_key)
        for sender, content in zip(senders, sealed, strict=True):
            member = members[sender]
            both = agreement.unseal(secret, member.cipher_key, session, sender, self._name, content)
            if len(both) != 2 * agreement.KEY_BYTES:
                raise BrokenProtocol(f"the shares of {sender} have {len(both)} bytes, must be 64")
            execution.key_shares[sender] = both[: agreement.KEY_BYTES].hex()
            execution.seed_shares[sender] = both[agreement.KEY_BYTES :].hex()
        execution.stage, execution.present = "training", present
        self._vault.write(execution)

    def masked(self, update: Mapping[str, Tensor], taught: Tensor, longest: float | None) -> dict[str, Words]:
        """The update in the ring, masked; with the entry ``taught``, how many sites each branch's sum is of.

        Args:
            update: by wire name, float32, all of the run's names.
            taught: whole numbers, one a branch.
            longest: an L2 norm that rounding must not pass; None: any.
        """
        execution = self._vault.read()
        self._demand(execution, "training")
        session = Session(**_untold(execution.session))
        members = {member.name: member for member in _members(execution)}
        cut = sum(int((value.abs() > session.bound).sum()) for value in update.values())
        if cut:
            log.warning("%d values of the update are clipped to secure.value_bound = %g", cut, session.bound)
        vectors = encoded_update(update, FixedPoint(session.bound, len(members)), SecretStream(), longest)
        vectors[TAUGHT] = taught.numpy().astype("uint32")
        mask(vectors, agreement.self_mask_key(bytes.fromhex(execution.seed), session))
        private = bytes.fromhex(execution.mask_key)
        for other in self._near(session, execution):
            if other in execution.present:
                key = agreement.mask_key(private, members[other].mask_key, session, (self._name, other))
                mask(vectors, key, 1 if self._name < other else -1)
        execution.stage = "masked"
        self._vault.write(execution)
        return vectors

    def confirm(self, request: ConfigRecord) -> dict[str, Any]:
        """Sign whose updates are in the sum."""
        execution, session = self._at("masked", request)
        summed = sorted(names(request, "summed"))
        if not set(summed) <= set(execution.present) or self._name not in summed:
            raise BrokenProtocol("summed: names somebody who was not there, or leaves this site out")
        members = _members(execution)
        self._check_enough(summed, agreement.needed(session.threshold, len(members)))
        execution.stage, execution.summed = "confirmed", summed
        self._vault.write(execution)
        text = agreement.summed_text(agreement.roster_digest(session, members), summed)
        return {"signature": self._membership.sign(text)}

    def unmask(self, request: ConfigRecord) -> dict[str, Any]:
        """The shares that open the sum, once enough sites have signed the list that this one has signed."""
        execution, session = self._at("confirmed", request)
        members = _members(execution)
        text = agreement.summed_text(agreement.roster_digest(session, members), execution.summed)
        signers = names(request, "signers")
        signatures = blobs(request, "signatures", len(signers))
        if not set(signers) <= set(execution.summed):
            raise BrokenProtocol("signers: must be sites in the sum")
        threshold = agreement.needed(session.threshold, len(members))
        for name, signature in zip(signers, signatures, strict=True):
            if not self._membership.signed(name, signature, text):
                raise BrokenProtocol(f"{name} has not signed this list of sites in the sum: others were shown another")
        self._check_enough(signers, threshold)
        near = [*self._near(session, execution), self._name]
        alive = sorted(name for name in near if name in execution.summed)
        lost = sorted(name for name in near if name in execution.present and name not in execution.summed)
        answer = {
            "seed_owners": alive,
            "seed_shares": [bytes.fromhex(execution.seed_shares[name]) for name in alive],
            "key_owners": lost,
            "key_shares": [bytes.fromhex(execution.key_shares[name]) for name in lost],
        }
        self._vault.write(Execution(opened=max(execution.opened, session.server_round)))  # the secrets have served
        return answer

    def _near(self, session: Session, execution: Execution) -> list[str]:
        members = _members(execution)
        digest = agreement.roster_digest(session, members)
        everybody = [member.name for member in members]
        return agreement.neighbours_of(self._name, everybody, session.neighbours, digest)

    def _session(self, request: ConfigRecord) -> Session:
        nonce = blob(request, "nonce", agreement.SESSION_BYTES)
        number = request.get("round")
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise BrokenProtocol(f"round = {number!r:.40}, must be a whole number from 1")
        bound = self._settings.coordinate_bound
        return Session.of(self._settings.secure, self._federation, number, nonce, bound)

    def _at(self, stage: str, request: ConfigRecord) -> tuple[Execution, Session]:
        """The open execution, which must have come as far as ``stage`` and be the one that is asked about."""
        execution, session = self._vault.read(), self._session(request)
        self._demand(execution, stage)
        if execution.session != _told(session):
            raise BrokenProtocol("the request is of another execution, or of a run with other settings")
        return execution, session

    def _demand(self, execution: Execution, stage: str) -> None:
        if execution.stage != stage:
            now = f"has come to {execution.stage!r}" if execution.stage else "has none open"
            raise BrokenProtocol(f"asked out of turn: this site {now}, the request follows {stage!r}; each comes once")

    def _check_own(self, execution: Execution, members: Sequence[Member]) -> None:
        named = [member.name for member in members]
        keys = [key for member in members for key in (member.cipher_key, member.mask_key)]
        if len(set(named)) != len(named) or len(set(keys)) != len(keys):
            raise BrokenProtocol("the list of members names a site or a key twice")
        own = next((member for member in members if member.name == self._name), None)
        sent = tuple(agreement.public_key(bytes.fromhex(key)) for key in (execution.cipher_key, execution.mask_key))
        if own is None or (own.cipher_key, own.mask_key) != sent:
            raise BrokenProtocol("the list of members lacks this site, or has other keys under its name")

    def _untrusted(self, session: Session, members: Sequence[Member]) -> dict[str, str]:
        """Members whose keys cannot be theirs, with the reason."""
        found = {}
        for member in members:
            if not self._membership.signed(member.name, member.signature, member.text(session)):
                known = member.name in self._membership.members
                found[member.name] = (
                    "its signature is not of this round and these settings" if known else "no such key in member_keys"
                )
        return found

    def _check_enough(self, sites: Sequence[str], threshold: int) -> None:
        least = max(self._least, threshold)
        if len(set(sites)) < least:
            raise UserError(
                f"refused: {len(set(sites))} sites in the sum, this site takes part where there are at least {least} "
                "(refuse.min_sites, rounds.min_sites, secure.threshold)"
            )


def _members(execution: Execution) -> list[Member]:
    return [
        Member(entry["name"], *(bytes.fromhex(entry[key]) for key in ("cipher_key", "mask_key", "signature")))
        for entry in execution.members
    ]


def _hex(member: Member) -> dict[str, str]:
    return {key: value if isinstance(value, str) else value.hex() for key, value in asdict(member).items()}


def _told(session: Session) -> dict[str, Any]:
    return {**asdict(session), "nonce": session.nonce.hex()}


def _untold(told: Mapping[str, Any]) -> dict[str, Any]:
    return {**told, "nonce": bytes.fromhex(told["nonce"])}


LONGEST_GROWTH = 1 + ROUNDING_HEADROOM / 2  # of an L2 norm by rounding; the noise pays for twice as much
