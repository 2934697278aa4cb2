"""Keys, shares and names of secure aggregation: what fits together, and that nothing else does."""

import itertools
from dataclasses import replace

import pytest

from spact_models import agreement
from spact_models.agreement import BrokenProtocol, Member, Session

SESSION = Session("f" * 32, 4, bytes(16), 0.66, 0, 1.0)
NAMES = ["east", "north", "south", "west", "zoo"]
SECRET = bytes(range(32))


@pytest.mark.parametrize(
    ("share", "holders", "count"),
    [(0.66, 2, 2), (0.66, 3, 2), (0.66, 4, 3), (0.66, 5, 4), (0.66, 6, 4), (0.5, 4, 3), (0.5, 5, 3), (1.0, 5, 5)],
)
def test_more_than_half_are_always_needed(share, holders, count):
    assert agreement.needed(share, holders) == count
    assert 2 * count > holders


def test_any_three_of_five_open_a_secret_and_no_two_do():
    shares = agreement.split(SECRET, 3, NAMES)
    assert sorted(shares) == NAMES
    for chosen in itertools.combinations(NAMES, 3):
        assert agreement.combine({name: shares[name] for name in chosen}, NAMES) == SECRET
    for chosen in itertools.combinations(NAMES, 2):
        assert agreement.combine({name: shares[name] for name in chosen}, NAMES) != SECRET


def test_too_few_shares_say_nothing():
    """Two of three-of-five shares of one secret are as random as those of another.

    800 draws leave 11 of a byte's 256 values unseen, give or take 3: 56 never, if the draws are uniform.
    """
    seen = {secret: [set() for _ in range(64)] for secret in (bytes(32), b"\xff" * 32)}
    for secret, places in seen.items():
        for _ in range(800):
            shares = agreement.split(secret, 3, NAMES)
            for place, value in enumerate(shares["east"] + shares["zoo"]):
                places[place].add(value)
    assert min(len(values) for places in seen.values() for values in places) > 200


def test_a_wrong_share_gives_another_secret_which_its_commitment_shows():
    shares = agreement.split(SECRET, 3, NAMES)
    wrong = {**{name: shares[name] for name in ("east", "north")}, "south": bytes(32)}
    found = agreement.combine(wrong, NAMES)
    assert agreement.commitment(found, SESSION) != agreement.commitment(SECRET, SESSION)
    right = agreement.combine({name: shares[name] for name in NAMES[:3]}, NAMES)
    assert agreement.commitment(right, SESSION) == agreement.commitment(SECRET, SESSION)


def test_two_sites_agree_on_one_mask_which_no_third_has_and_no_other_execution():
    first, second, third = (agreement.new_key() for _ in range(3))
    pair = ("north", "south")
    ours = agreement.mask_key(first, agreement.public_key(second), SESSION, pair)
    assert ours == agreement.mask_key(second, agreement.public_key(first), SESSION, pair[::-1])
    assert ours != agreement.mask_key(third, agreement.public_key(second), SESSION, pair)
    for field, value in (("nonce", b"1" * 16), ("server_round", 5), ("federation", "g" * 32), ("bound", 2.0)):
        other = replace(SESSION, **{field: value})
        assert ours != agreement.mask_key(first, agreement.public_key(second), other, pair), field


def test_a_sealed_share_is_for_one_reader_of_one_execution_and_cannot_be_changed():
    mine, theirs = agreement.new_key(), agreement.new_key()
    sealed = agreement.seal(mine, agreement.public_key(theirs), SESSION, "north", "south", SECRET)
    opened = agreement.unseal(theirs, agreement.public_key(mine), SESSION, "north", "south", sealed)
    assert opened == SECRET
    assert SECRET not in sealed
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    public = agreement.public_key(mine)
    for reader, session, sender, content in (
        (theirs, SESSION, "north", changed),
        (agreement.new_key(), SESSION, "north", sealed),
        (theirs, replace(SESSION, nonce=b"1" * 16), "north", sealed),
        (theirs, SESSION, "west", sealed),
    ):
        with pytest.raises(BrokenProtocol, match="cannot be opened"):
            agreement.unseal(reader, public, session, sender, "south", content)
    with pytest.raises(BrokenProtocol, match="cannot be opened"):  # reflected to its sender
        agreement.unseal(mine, agreement.public_key(theirs), SESSION, "south", "north", sealed)


def test_a_key_of_small_order_is_refused():
    with pytest.raises(BrokenProtocol, match="agrees on nothing"):
        agreement.mask_key(agreement.new_key(), bytes(32), SESSION, ("north", "south"))


@pytest.mark.parametrize(("count", "k"), [(12, 4), (12, 5), (30, 10), (5, 4), (4, 40)])
def test_neighbours_are_mutual_even_in_number_and_connect_everybody(count, k):
    names = [f"site-{number}" for number in range(count)]
    near = {name: agreement.neighbours_of(name, names, k, b"roster") for name in names}
    wanted = min(count - 1, k + k % 2)
    for name, others in near.items():
        assert len(others) == wanted
        assert name not in others
        assert all(name in near[other] for other in others)
    reached, border = {names[0]}, [names[0]]
    while border:
        border = [other for name in border for other in near[name] if other not in reached]
        reached |= set(border)
    assert reached == set(names)


def test_who_is_near_whom_follows_from_everybodys_keys():
    names = [f"site-{number}" for number in range(30)]
    near = {roster: agreement.neighbours_of(names[0], names, 4, roster) for roster in (b"one", b"two")}
    assert near[b"one"] != near[b"two"]
    assert agreement.neighbours_of(names[0], names, 0, b"one") == sorted(names[1:])


def test_texts_cannot_be_mistaken_for_each_other():
    """The same characters, cut elsewhere, are another text."""
    cut, elsewhere = Member("ab", b"c" * 32, b"d" * 32, b""), Member("a", b"b" + b"c" * 31, b"cd" + b"d" * 30, b"")
    assert cut.text(SESSION) != elsewhere.text(SESSION)
    assert agreement.summed_text(b"r", ["ab", "c"]) != agreement.summed_text(b"r", ["a", "bc"])
    members = [Member(name, bytes([number]) * 32, bytes([number + 9]) * 32, b"") for number, name in enumerate(NAMES)]
    assert agreement.roster_digest(SESSION, members) == agreement.roster_digest(SESSION, members[::-1])
    assert agreement.roster_digest(SESSION, members) != agreement.roster_digest(SESSION, members[:4])
