"""Masked updates as they lie in a message: 32-bit words that nobody can read."""

from __future__ import annotations

import math

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from server.aggregate import HEADER_BYTES, RejectedUpdate, parsed_header
from spact_models.ring import TAUGHT, Words

WORD_DTYPE = "<u4"


def read_words(name: str, array: Array, shape: tuple[int, ...]) -> Words:
    """A masked array on the message's own bytes.

    Raises:
        RejectedUpdate: not a plain array of 32-bit words of the expected shape.
    """
    if array.stype != "numpy.ndarray":
        raise RejectedUpdate(f"{name} is serialised as {array.stype!r:.40}, must be 'numpy.ndarray'")
    length = 10 + int.from_bytes(array.data[8:10], "little")
    try:
        found, fortran, dtype, start = parsed_header(array.data[: min(length, HEADER_BYTES)])
    except Exception as error:  # whatever a stranger's bytes make of the parser, the answer is the same
        raise RejectedUpdate(f"{name} is not a numpy array ({error})") from None
    if dtype.str != WORD_DTYPE or found != shape or (fortran and len(shape) > 1):
        raise RejectedUpdate(f"{name} is {dtype} of shape {found}, must be masked: 32-bit words of shape {shape}")
    count = math.prod(shape)
    if len(array.data) != start + 4 * count:
        raise RejectedUpdate(f"{name} has {len(array.data) - start} bytes, must be {4 * count}")
    return np.frombuffer(array.data, WORD_DTYPE, count, start).reshape(shape)


def masked_records(content: RecordDict) -> tuple[ArrayRecord, ArrayRecord]:
    """A reply's masked update and counts.

    Raises:
        RejectedUpdate: one of the two is not there.
    """
    update, taught = content.array_records.get("update"), content.array_records.get(TAUGHT)
    if update is None or taught is None:
        raise RejectedUpdate("the reply lacks the record 'update' or 'taught'")
    return update, taught
