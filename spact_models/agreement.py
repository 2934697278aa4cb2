"""What both halves of secure aggregation agree on: who is in it, its texts and keys, how secrets are shared.

The protocol is that of Bonawitz et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving Machine Learning")
in its version against a server that lies, over the neighbour graph of Bell et al. 2020 where ``secure.neighbours`` is
set. Every key is made for one round and derived with that round's own context, so nothing of an earlier one fits.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from spact_models.secure_settings import SecureConfig

KEY_BYTES = 32
HALF = 16  # pycryptodome shares 16 bytes at a time
SESSION_BYTES = 16
PROTOCOL = "fedspact secure aggregation 1"


class BrokenProtocol(Exception):
    """The other side sent what the protocol does not allow; the message says what."""


@dataclass(frozen=True)
class Session:
    """One execution of the protocol, and what its members must agree on; goes into every key and signature."""

    federation: str
    server_round: int
    nonce: bytes  # the server's, new for each execution
    threshold: float
    neighbours: int
    bound: float  # of a coordinate

    @classmethod
    def of(cls, config: SecureConfig, federation: str, server_round: int, nonce: bytes, bound: float) -> Session:
        return cls(federation, server_round, nonce, config.threshold, config.neighbours, bound)

    @property
    def text(self) -> bytes:
        """Unambiguous: a JSON list."""
        fields = (self.federation, self.server_round, self.nonce.hex(), self.threshold, self.neighbours, self.bound)
        return json.dumps([PROTOCOL, *fields]).encode()


@dataclass(frozen=True)
class Member:
    """A site's keys of one execution, as it signed them."""

    name: str
    cipher_key: bytes  # X25519: shares are sealed for it
    mask_key: bytes  # X25519: masks are agreed with it
    signature: bytes

    def text(self, session: Session) -> bytes:
        """What it signed."""
        return _digest(session.text, b"keys", self.name.encode(), self.cipher_key, self.mask_key)


def roster_digest(session: Session, members: Sequence[Member]) -> bytes:
    """One value for "these members with these keys"; the order does not matter."""
    entries = [member.text(session) for member in sorted(members, key=lambda member: member.name)]
    return _digest(session.text, b"roster", *entries)


def summed_text(roster: bytes, names: Collection[str]) -> bytes:
    """What a site signs when it is told whose updates are in the sum: the roster, and these names."""
    return _digest(b"summed", roster, *(name.encode() for name in sorted(names)))


def needed(share: float, holders: int) -> int:
    """How many of ``holders`` open a secret: the share of them, rounded up, and always more than half.

    More than half, because a server that lies asks some for one secret of a site and the others for its other one.
    """
    return max(math.ceil(share * holders), holders // 2 + 1)


def neighbours_of(name: str, names: Collection[str], k: int, roster: bytes) -> list[str]:
    """With whom ``name`` agrees masks and shares secrets, sorted; everybody when ``k`` is 0 or reaches all.

    Otherwise the ``k`` (rounded up to even) nearest ones on a ring in an order that the roster's own keys decide.
    """
    others = sorted(other for other in names if other != name)
    reach = math.ceil(k / 2)
    if not k or 2 * reach >= len(others):
        return others
    ring = sorted(names, key=lambda each: (_digest(b"ring", roster, each.encode()), each))
    place, count = ring.index(name), len(ring)
    return sorted({ring[(place + away) % count] for step in range(1, reach + 1) for away in (step, -step)})


def new_key() -> bytes:
    """A private X25519 key of the operating system's randomness."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def mask_key(private: bytes, public: bytes, session: Session, pair: tuple[str, str]) -> bytes:
    """The key of the mask that two sites share; either's private and the other's public key give it."""
    return _agreed(private, public, session, b"mask", *sorted(pair))


def seal(private: bytes, public: bytes, session: Session, sender: str, receiver: str, content: bytes) -> bytes:
    """``content`` for the receiver alone; the key serves one sender, receiver and execution, so one nonce does."""
    key = _agreed(private, public, session, b"cipher", sender, receiver)
    return ChaCha20Poly1305(key).encrypt(bytes(12), content, None)


def unseal(private: bytes, public: bytes, session: Session, sender: str, receiver: str, sealed: bytes) -> bytes:
    """What was sealed.

    Raises:
        BrokenProtocol: it was sealed for somebody else, in another execution, or has been changed.
    """
    key = _agreed(private, public, session, b"cipher", sender, receiver)
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, None)
    except InvalidTag:
        raise BrokenProtocol(f"the shares of {sender} for {receiver} cannot be opened: not of this round") from None


def self_mask_key(seed: bytes, session: Session) -> bytes:
    return _derived(seed, session, b"self")


def commitment(seed: bytes, session: Session) -> bytes:
    """By which a seed that was put together again is known to be the right one."""
    return _digest(b"seed", session.text, seed)


def share_digest(session: Session, kind: str, owner: str, holder: str, share: bytes) -> bytes:
    """By which one share is known to be the one that its owner dealt."""
    return _digest(b"share", session.text, kind.encode(), owner.encode(), holder.encode(), share)


def split(secret: bytes, threshold: int, holders: Sequence[str]) -> dict[str, bytes]:
    """Shamir's shares of 32 bytes, one a holder; ``threshold`` of them give the secret, fewer say nothing."""
    if len(secret) != KEY_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes, must be {KEY_BYTES}")
    halves = [Shamir.split(threshold, len(holders), secret[start : start + HALF], False) for start in (0, HALF)]
    return {
        holder: first[1] + second[1] for holder, first, second in zip(sorted(holders), *halves, strict=True)
    }  # pycryptodome numbers them from 1, in order


def combine(shares: Mapping[str, bytes], holders: Sequence[str]) -> bytes:
    """The secret from at least ``threshold`` shares; from wrong or too few ones some other 32 bytes.

    Args:
        shares: by holder.
        holders: all to whom :func:`split` dealt.
    """
    place = {holder: number for number, holder in enumerate(sorted(holders), start=1)}
    halves = []
    for start in (0, HALF):
        numbered = [(place[holder], share[start : start + HALF]) for holder, share in shares.items()]
        halves.append(Shamir.combine(numbered, False))
    return b"".join(bytes(half) for half in halves)


def _agreed(private: bytes, public: bytes, session: Session, purpose: bytes, *names: str) -> bytes:
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # a point of small order: its product is 0, which anybody knows
        raise BrokenProtocol("a key that agrees on nothing: its owner, or the server, has tampered with it") from None
    return _derived(secret, session, purpose, *names)


def _derived(secret: bytes, session: Session, purpose: bytes, *names: str) -> bytes:
    info = _digest(session.text, purpose, *(name.encode() for name in names))
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def _digest(*parts: bytes) -> bytes:
    """SHA-256 over parts that cannot run into each other: each stands behind its length."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "big"))
        sha.update(part)
    return sha.digest()


def same(first: bytes, second: bytes) -> bool:
    """Equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(first, second)
