"""The one door out: nothing off the list leaves, and the ledger remembers what did."""

import hashlib
import json

import numpy as np
import pytest
import torch

from client.egress import METRICS, Door, Refused, digest
from spact_models.quantize import dequantized

NAMES = ("anonymizer.unet.weight", "action.head.bias")


def tensors(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 2, 5), (7,))
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in zip(NAMES, shapes, strict=True)}


@pytest.fixture
def door(tmp_path):
    return Door("clinic", tmp_path / "state" / "ledger.jsonl", frozenset(NAMES))


def send(door, after, before, server_round, residual=None):
    """Through the door in both its steps; the record of arrays."""
    return door.update(door.pack(after, before, residual or {}), server_round)["update"]


def entries(door):
    return [json.loads(line) for line in door.ledger.read_text(encoding="utf-8").splitlines()]


def test_the_difference_arrives(door):
    before, after = tensors(1), tensors(2)
    record = send(door, after, before, 1)
    assert list(record) == list(NAMES)
    for name in NAMES:
        arrived = record[name].numpy()
        assert arrived.dtype == np.float32
        np.testing.assert_array_equal(arrived, (after[name] - before[name]).numpy())


def test_float16_halves_the_bytes_and_keeps_three_digits(tmp_path):
    """Half a unit in the 11th bit: relative 2^-11; below the smallest normal number 2^-14 absolute 2^-25."""
    wide, narrow = (Door("s", tmp_path / kind, frozenset(NAMES), kind) for kind in ("float32", "float16"))
    before, after = tensors(1, 1e-2), tensors(2, 1e-2)
    full, half = send(wide, after, before, 1), send(narrow, after, before, 1)
    for name in NAMES:
        assert half[name].numpy().dtype == np.float16
        error = np.abs(half[name].numpy().astype(np.float64) - full[name].numpy())
        assert (error <= np.maximum(2.0**-11 * np.abs(full[name].numpy()), 2.0**-25)).all()
        assert error.max() > 0
    assert 2 * entries(narrow)[0]["bytes"] == entries(wide)[0]["bytes"]


@pytest.mark.parametrize("name", ["privacy.trunk.weight", "buffers.action.bn.running_mean", "anonymizer.unet"])
def test_a_tensor_off_the_list_is_refused_by_name_and_nothing_leaves(door, name):
    before = {**tensors(1), name: torch.zeros(2)}
    with pytest.raises(Refused, match=rf"may leave site 'clinic': {name}$"):
        send(door, before, before, 1)
    assert not door.ledger.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_difference_that_is_not_finite_is_refused_by_name(door, value):
    after = tensors(2)
    after[NAMES[1]][3] = value
    with pytest.raises(Refused, match=rf"{NAMES[1]}: the difference holds NaN or infinity"):
        send(door, after, tensors(1), 1)
    assert not door.ledger.exists()


def test_a_difference_that_float16_cannot_hold_is_refused(tmp_path):
    after = tensors(2)
    after[NAMES[0]][0, 0, 0] = 7e4  # float16 ends at 65504
    assert send(Door("s", tmp_path / "l", frozenset(NAMES)), after, tensors(1), 1)
    with pytest.raises(Refused, match=NAMES[0]):
        send(Door("s", tmp_path / "l", frozenset(NAMES), "float16"), after, tensors(1), 1)


def test_int8_leaves_with_its_scales_and_both_are_in_the_ledger(tmp_path):
    door = Door("s", tmp_path / "l", frozenset(NAMES), "int8")
    after, before = tensors(2), tensors(1)
    packed = door.pack(after, before, {})
    assert not door.ledger.exists()  # nothing has left yet
    records = door.update(packed, 1)
    assert set(records) == {"update", "scales"}
    for name in NAMES:
        steps, scale = torch.from_numpy(records["update"][name].numpy().copy()), records["scales"][name]
        assert steps.dtype == torch.int8
        torch.testing.assert_close(dequantized(steps, scale) + packed.residual[name], after[name] - before[name])
    (entry,) = entries(door)
    assert entry["scales"] == dict(records["scales"])
    assert entry["bytes"] == 30 + 7
    assert entry["arrays"][NAMES[0]] == ["int8", 3, 2, 5]


def test_nothing_off_the_list_leaves_even_when_it_is_packed(door):
    packed = door.pack(tensors(2), tensors(1), {})
    narrower = Door(door.site, door.ledger, frozenset(NAMES[:1]))
    with pytest.raises(Refused, match=NAMES[1]):
        narrower.update(packed, 1)
    assert not door.ledger.exists()


def test_names_that_do_not_match_are_an_error(door):
    with pytest.raises(KeyError):
        send(door, tensors(1), {NAMES[0]: tensors(1)[NAMES[0]]}, 1)


def test_the_ledger_tells_what_left(door):
    before = tensors(1)
    records = [send(door, tensors(2 + number), before, number) for number in (1, 2)]
    first, second = entries(door)
    assert (first["round"], second["round"]) == (1, 2)
    assert first["arrays"] == {NAMES[0]: ["float32", 3, 2, 5], NAMES[1]: ["float32", 7]}
    assert first["bytes"] == second["bytes"] == 4 * (30 + 7)
    assert first["epsilon"] is None
    for entry, record in zip((first, second), records, strict=True):
        sent = b"".join(record[name].numpy().tobytes() for name in entry["arrays"])
        assert entry["sha256"] == hashlib.sha256(sent).hexdigest()
    assert first["sha256"] != second["sha256"]
    assert len(first["time"]) == len("2026-01-01T00:00:00Z")


def test_the_ledger_is_only_ever_added_to(door):
    door.ledger.parent.mkdir()
    door.ledger.write_text('{"round": 0}\n', encoding="utf-8")
    kept = []
    for number in (1, 2, 3):
        kept.append(door.ledger.read_bytes())
        send(door, tensors(number), tensors(9), number)
    whole = door.ledger.read_bytes()
    assert all(whole.startswith(before) for before in kept)
    assert [entry["round"] for entry in entries(door)] == [0, 1, 2, 3]


def test_the_digest_is_of_the_bytes_in_order():
    one, two = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float16)
    assert digest([one, two]) == hashlib.sha256(one.tobytes() + two.tobytes()).hexdigest()
    assert digest([one.T]) == hashlib.sha256(np.ascontiguousarray(one.T).tobytes()).hexdigest()
    assert digest([one, two]) != digest([two, one])


def test_figures_off_the_list_are_refused_by_name_and_those_that_are_not_finite_left_out(door):
    told = door.metrics({"examples": 4, "top1": 0.5, "loss.action": float("nan"), "seconds": float("inf")})
    assert dict(told) == {"examples": 4, "top1": 0.5}
    for name in ("identity", "path", "loss.privacy.frame"):
        assert name not in METRICS
        with pytest.raises(Refused, match=rf"figures that site 'clinic' tells: {name}$"):
            door.metrics({"examples": 4, name: 1.0})
