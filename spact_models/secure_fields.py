"""Fields of secure aggregation's messages, checked: what comes in comes from somebody who may lie."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from spact_models.agreement import KEY_BYTES, BrokenProtocol, Member

LONGEST_BLOB = 4096  # bytes of a key, a signature, a sealed share: the longest of ours has some hundred
LONGEST_REASON = 200


def blob(record: Mapping[str, Any], key: str, size: int | None = None) -> bytes:
    """One byte string, of ``size`` bytes where that is given.

    Raises:
        BrokenProtocol: it is none.
    """
    value = record.get(key)
    if not isinstance(value, bytes) or len(value) > LONGEST_BLOB or (size is not None and len(value) != size):
        raise BrokenProtocol(f"{key}: must be {'some' if size is None else size} bytes")
    return value


def blobs(record: Mapping[str, Any], key: str, count: int, size: int | None = None) -> list[bytes]:
    """A list of so many byte strings, each of ``size`` bytes where that is given.

    Raises:
        BrokenProtocol: it is none.
    """
    value = record.get(key)
    listed: list[Any] = value if isinstance(value, list) else []
    fine = all(
        isinstance(one, bytes) and len(one) <= LONGEST_BLOB and (size is None or len(one) == size) for one in listed
    )
    if not fine or len(listed) != count:
        raise BrokenProtocol(f"{key}: must be {count} byte strings{'' if size is None else f' of {size} bytes'}")
    return listed


def names(record: Mapping[str, Any], key: str) -> list[str]:
    """A list of different names.

    Raises:
        BrokenProtocol: it is none.
    """
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value) or len(set(value)) != len(value):
        raise BrokenProtocol(f"{key} = {value!r:.80}, must be a list of different names")
    return [str(name) for name in value]


def members_of(record: Mapping[str, Any]) -> list[Member]:
    """The list of members in the server's second message.

    Raises:
        BrokenProtocol: it is none.
    """
    named = names(record, "names")
    count = len(named)
    columns = [blobs(record, key, count, KEY_BYTES) for key in ("cipher_keys", "mask_keys")]
    signatures = blobs(record, "signatures", count)
    return [Member(*row) for row in zip(named, *columns, signatures, strict=True)]


def member_of(record: Mapping[str, Any], name: str) -> Member:
    """A site's answer to the first message.

    Raises:
        BrokenProtocol: it is none, or goes by another name.
    """
    if record.get("name") != name:
        raise BrokenProtocol(f"it calls itself {record.get('name')!r:.80}")
    cipher_key, mask_key = (blob(record, key, KEY_BYTES) for key in ("cipher_key", "mask_key"))
    return Member(name, cipher_key, mask_key, blob(record, "signature"))


def untrusted_of(record: Mapping[str, Any], known: Collection[str]) -> dict[str, str]:
    """Whom a site does not trust, with its reasons.

    Raises:
        BrokenProtocol: names that nobody has, or without a reason each.
    """
    named, reasons = names(record, "untrusted"), record.get("reasons")
    if not isinstance(reasons, list) or len(reasons) != len(named) or not set(named) <= set(known):
        raise BrokenProtocol("untrusted: must be names of members, with a reason each")
    return {name: str(reason)[:LONGEST_REASON] for name, reason in zip(named, reasons, strict=True)}
