"""Whatever a message holds, it is taken for what it must be or refused with a sentence."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spact_models.agreement import BrokenProtocol, Member
from spact_models.secure_fields import blob, blobs, member_of, members_of, names, untrusted_of

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=40),
    st.lists(st.text(max_size=4), max_size=4), st.lists(st.binary(max_size=40), max_size=4),
    st.lists(st.integers(), max_size=3), st.binary(min_size=4090, max_size=4100),
)  # fmt: skip
KEYS = ("name", "names", "cipher_key", "mask_key", "signature", "cipher_keys", "mask_keys", "signatures")
RECORDS = st.dictionaries(st.sampled_from((*KEYS, "untrusted", "reasons")), VALUES)
GOOD = {
    "names": ["north", "south"], "cipher_keys": [bytes(32), b"a" * 32], "mask_keys": [b"b" * 32, b"c" * 32],
    "signatures": [b"s", b"t"], "name": "north", "cipher_key": bytes(32), "mask_key": b"b" * 32, "signature": b"s",
    "untrusted": ["south"], "reasons": ["why"],
}  # fmt: skip


@given(RECORDS)
@settings(max_examples=200, deadline=None)
def test_nothing_but_a_refusal_comes_of_nonsense(record):
    mixed = {**GOOD, **record}
    for read in (
        lambda: names(mixed, "names"), lambda: blob(mixed, "signature"), lambda: blobs(mixed, "signatures", 2),
        lambda: members_of(mixed), lambda: member_of(mixed, "north"), lambda: untrusted_of(mixed, ["north", "south"]),
    ):  # fmt: skip
        with suppress(BrokenProtocol):
            assert isinstance(read(), list | bytes | Member | dict)


def test_what_is_right_comes_out_as_it_went_in():
    north, south = Member("north", bytes(32), b"b" * 32, b"s"), Member("south", b"a" * 32, b"c" * 32, b"t")
    assert members_of(GOOD) == [north, south]
    assert member_of(GOOD, "north") == north
    assert untrusted_of(GOOD, ["south"]) == {"south": "why"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"names": ["north", "north"]}, "different names"),
        ({"mask_keys": [b"b" * 32]}, "must be 2 byte strings of 32 bytes"),
        ({"mask_keys": [b"b" * 32, b"c" * 31]}, "must be 2 byte strings of 32 bytes"),
        ({"signatures": [b"s", "t"]}, "must be 2 byte strings"),
        ({"signatures": [b"s", bytes(5000)]}, "must be 2 byte strings"),
    ],
)
def test_a_list_of_members_must_be_whole(change, said):
    with pytest.raises(BrokenProtocol, match=said):
        members_of({**GOOD, **change})


def test_names_and_blame_must_be_of_members():
    with pytest.raises(BrokenProtocol, match="calls itself"):
        member_of(GOOD, "south")
    with pytest.raises(BrokenProtocol, match="names of members"):
        untrusted_of(GOOD, ["north"])
    with pytest.raises(BrokenProtocol, match="must be 31 bytes"):
        blob(GOOD, "mask_key", 31)
