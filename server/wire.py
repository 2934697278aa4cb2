"""How many bytes of a message cross the wire, without serialising it a second time.

Flower cuts a message into objects that are stored by the hash of their content: each array into chunks of 5 MiB and a
description, each record into a list of hashes. A receiver pulls every object once, so an array that stands in two
records of one message, as f_T does in the round that also brings the teacher, crosses once. What is left out here is
the envelope: Flower's metadata of a message, and HTTP's own lines (docs/results.md, "The wire": the measured
difference).
"""

from __future__ import annotations

import json

from flwr.app import Array, ArrayRecord, RecordDict

CHUNK_BYTES = 5 * 2**20  # flwr 1.41's; a test holds this module against what flwr really writes
HASH = "0" * 64  # SHA-256 in hex


def wire_bytes(content: RecordDict) -> int:
    """Bytes of the objects that a message's content is cut into, each one once.

    Exact where no two chunks or records are equal by chance: arrays count as the same when they share their memory, as
    they do when the server or flwr puts one into two records. Otherwise an upper bound.
    """
    seen: set[int] = set()
    total = _object_bytes("RecordDict", len(content), _references(content))
    for record in content.values():
        if isinstance(record, ArrayRecord):
            total += _object_bytes(
                "ArrayRecord", len({id(array.data) for array in record.values()}), _references(record)
            )
            total += sum(_array_bytes(array) for array in record.values() if not _met(id(array.data), seen))
        else:
            total += len(record.deflate())
    return total


def _array_bytes(array: Array) -> int:
    sizes = [min(CHUNK_BYTES, len(array.data) - start) for start in range(0, len(array.data), CHUNK_BYTES)]
    description = {
        "dtype": array.dtype,
        "shape": list(array.shape),
        "stype": array.stype,
        "arraychunk_ids": list(range(len(sizes))),
    }
    chunks = sum(_object_bytes("ArrayChunk", 0, size) for size in sizes)
    return chunks + _object_bytes("Array", len(sizes), len(json.dumps(description)))


def _references(named: RecordDict | ArrayRecord) -> int:
    return len(json.dumps(dict.fromkeys(named, HASH)))


def _object_bytes(kind: str, children: int, body: int) -> int:
    """Flower's object: ``KIND HASH,HASH,... LENGTH``, a zero byte, the body."""
    hashes = max(0, children * (len(HASH) + 1) - 1)
    return len(kind) + 1 + hashes + 1 + len(str(body)) + 1 + body


def _met(key: int, seen: set[int]) -> bool:
    known = key in seen
    seen.add(key)
    return known
