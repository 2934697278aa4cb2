"""The streaming mean against the mean by hand, and every way in which an update can be wrong."""

import gc
import itertools
import weakref

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from server.aggregate import (
    LARGEST_DIFFERENCE,
    NO_SCALES,
    VALUES_AT_ONCE,
    RejectedUpdate,
    StreamingMean,
    claimed_examples,
    read_array,
    widened,
)

SHAPES = {"anonymizer.conv.weight": (2, 3), "anonymizer.scale": (), "action.head": (4,)}
LIMIT = 1000
BOTH = {"anonymizer.": 3, "action.": 5}


def update(seed: int, names=tuple(SHAPES), dtype=np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=SHAPES[name]), dtype=dtype) for name in names}


def record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in arrays.items()})


def numbers(mean: StreamingMean) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in mean.mean().items()}


def test_weighted_mean_by_hand_branch_by_branch():
    first, second = update(1), update(2)
    mean = StreamingMean(SHAPES, LIMIT)
    mean.add(record(first), {"anonymizer.": 1, "action.": 10})
    mean.add(record(second), {"anonymizer.": 3, "action.": 30})
    third = update(3, ("anonymizer.conv.weight", "anonymizer.scale"))
    mean.add(record(third), {"anonymizer.": 4, "action.": 0})
    for name in SHAPES:
        a, b = first[name].astype(float), second[name].astype(float)
        by_hand = (10 * a + 30 * b) / 40 if name.startswith("action") else (a + 3 * b + 4 * third[name]) / 8
        np.testing.assert_allclose(mean.mean()[name].numpy(), by_hand, rtol=0, atol=1e-6)
    assert mean.weights == {"anonymizer.": 8, "action.": 40}
    assert mean.updates == 3


def test_equal_weighting_ignores_the_counts_but_not_absence():
    first, second = update(1), update(2)
    mean = StreamingMean(SHAPES, LIMIT, "equal")
    mean.add(record(first), {"anonymizer.": 1, "action.": 1})
    mean.add(record(second), {"anonymizer.": 999, "action.": 999})
    np.testing.assert_allclose(
        mean.mean()["action.head"], (first["action.head"] + second["action.head"]) / 2, rtol=1e-6
    )
    assert mean.weights == {"anonymizer.": 2, "action.": 2}


def test_any_order_gives_the_same_mean_to_the_stated_tolerance():
    updates = [update(seed) for seed in range(5)]
    counts = [1, 997, 40, 3, 250]
    largest = max(np.abs(value).max() for each in updates for value in each.values())
    results = []
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 7):
        mean = StreamingMean(SHAPES, LIMIT)
        for i in order:
            mean.add(record(updates[i]), {"anonymizer.": counts[i], "action.": counts[-1 - i]})
        results.append(numbers(mean))
    for name in SHAPES:
        spread = np.ptp(np.stack([result[name] for result in results]), axis=0)
        assert spread.max() <= 4 * 5 * 2**-24 * largest
    by_hand = sum(n * u["anonymizer.scale"].astype(float) for n, u in zip(counts, updates, strict=True)) / sum(counts)
    assert abs(results[0]["anonymizer.scale"] - by_hand) <= 4 * 5 * 2**-24 * largest


def test_one_update_and_equal_updates_come_out_exactly():
    one = update(1)
    mean = StreamingMean(SHAPES, LIMIT)
    for count in (7, 31, 2):
        mean.add(record(one), {"anonymizer.": count, "action.": count})
        for name in SHAPES:
            np.testing.assert_array_equal(mean.mean()[name].numpy(), one[name])


def test_half_precision_fortran_order_and_empty_arrays_are_read_rightly():
    shapes = {"action.half": (3, 2), "action.fortran": (2, 3, 4), "action.none": (0, 5)}
    half = np.arange(6, dtype=np.float16).reshape(3, 2) / 8
    fortran = np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    arrays = {"action.half": half, "action.fortran": fortran, "action.none": np.zeros((0, 5), np.float32)}
    mean = StreamingMean(shapes, LIMIT)
    mean.add(record(arrays), {"action.": 2})
    for name, value in arrays.items():
        assert mean.mean()[name].dtype == torch.float32
        np.testing.assert_array_equal(mean.mean()[name].numpy(), value.astype(np.float32))


def with_(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    return {**update(9), name: value}


def without(name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in update(9).items() if key != name}


HEAD = "action.head"
BAD_ARRAYS = {
    "nan": (with_(HEAD, np.array([0, np.nan, 1, 2], np.float32)), "action.head holds nan, must be finite"),
    "inf": (with_(HEAD, np.array([0, np.inf, 1, 2], np.float32)), "action.head holds inf, must be finite"),
    "-inf": (with_(HEAD, np.array([0, -np.inf, 1, 2], np.float32)), "action.head holds -inf, must be finite"),
    "half inf": (with_(HEAD, np.array([0, np.inf, 1, 2], np.float16)), "must be finite"),
    "huge": (with_(HEAD, np.full(4, -3e38, np.float32)), "holds 3e\\+38, must be at most 1e\\+06"),
    "further": (with_("action.extra", np.zeros(1, np.float32)), "unexpected action.extra"),
    "privacy": (with_("privacy.conv", np.zeros(1, np.float32)), "unexpected privacy.conv"),
    "missing": (without(HEAD), "missing action.head"),
    "shape": (with_(HEAD, np.zeros((2, 2), np.float32)), r"action.head has shape \(2, 2\), must be \(4,\)"),
    "int": (with_(HEAD, np.zeros(4, np.int64)), "action.head is of type int64, must be float32, float16 or int8"),
    "double": (with_(HEAD, np.zeros(4)), "action.head is of type float64"),
    "bool": (with_(HEAD, np.zeros(4, bool)), "action.head is of type bool"),
    "big endian": (with_(HEAD, np.zeros(4, ">f4")), "action.head is of type >f4"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_a_bad_array_is_rejected_by_name_and_leaves_no_trace(case):
    arrays, message = BAD_ARRAYS[case]
    assert_rejected(record(arrays), BOTH, message)


BAD_COUNTS = {
    "negative": ({"anonymizer.": -3, "action.": 5}, "examples.anonymizer = -3, must be a whole number from 0 to 1000"),
    "absurd": ({"anonymizer.": 3, "action.": 10**12}, "examples.action = 1000000000000, must be"),
    "one above": ({"anonymizer.": LIMIT + 1, "action.": 5}, "examples.anonymizer = 1001"),
    "fraction": ({"anonymizer.": 2.5, "action.": 5}, "examples.anonymizer = 2.5"),
    "nan": ({"anonymizer.": float("nan"), "action.": 5}, "examples.anonymizer = nan"),
    "list": ({"anonymizer.": [3], "action.": 5}, r"examples.anonymizer = \[3\]"),
    "true": ({"anonymizer.": True, "action.": 5}, "examples.anonymizer = True"),
    "zero": ({"anonymizer.": 0, "action.": 0}, "no branch has examples"),
    "undeclared branch": ({"anonymizer.": 3, "action.": 0}, "unexpected action.head"),
    "unknown branch": ({"anonymizer.": 3, "action.": 5, "privacy.": 5}, "examples for 'privacy.'"),
}


@pytest.mark.parametrize("case", BAD_COUNTS)
def test_a_bad_count_is_rejected_and_leaves_no_trace(case):
    counts, message = BAD_COUNTS[case]
    assert_rejected(record(update(9)), counts, message)


def forged(data: bytes | None = None, stype: str = "numpy.ndarray") -> ArrayRecord:
    good = Array(np.zeros(4, np.float32))
    out = record(update(9))
    out[HEAD] = Array("float32", (4,), stype, good.data if data is None else data)
    return out


def test_forged_bytes_are_rejected():
    good, wide = Array(np.zeros(4, np.float32)).data, Array(np.zeros(5, np.float32)).data
    assert_rejected(forged(good[:-1]), BOTH, "action.head has 15 bytes, must be 16")
    assert_rejected(forged(good + b"xx"), BOTH, "action.head has 18 bytes")
    assert_rejected(forged(b"not an array"), BOTH, "action.head is not a numpy array")
    assert_rejected(forged(b""), BOTH, "action.head is not a numpy array")
    assert_rejected(forged(wide), BOTH, r"action.head has shape \(5,\)")  # the message itself says (4,)
    assert_rejected(forged(good.replace(b"'<f4'", b"'|O' ")), BOTH, "action.head is of type object")
    assert_rejected(forged(stype="pickle"), BOTH, "serialised as 'pickle'")


SCALES = {"anonymizer.conv.weight": 0.5, "anonymizer.scale": 2.0, "action.head": 2.0**-10}


def steps(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(-127, 128, shape).astype(np.int8) for name, shape in SHAPES.items()}


def test_int8_is_its_steps_times_its_scale_in_any_company():
    quantised, plain, half = steps(1), update(2), update(3, dtype=np.float16)
    wide = {name: np.asarray(value * np.float32(SCALES[name]), np.float32) for name, value in quantised.items()}
    for order in itertools.permutations(range(3)):
        mean, twin = StreamingMean(SHAPES, LIMIT), StreamingMean(SHAPES, LIMIT)
        for index in order:
            sent, scales = ((quantised, SCALES), (plain, {}), (half, {}))[index]
            mean.add(record(sent), BOTH, scales)
            twin.add(record((wide, plain, half)[index]), BOTH)
        for name in SHAPES:
            np.testing.assert_allclose(mean.mean()[name], twin.mean()[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
def test_narrow_types_are_added_as_if_they_were_wide(dtype):
    """More values than are widened at a time, a last stretch that is not whole, and Fortran order."""
    shapes = {"action.long": (2 * VALUES_AT_ONCE + 77,), "action.fortran": (3, 5, 2)}
    rng = np.random.default_rng(0)
    scales = dict.fromkeys(shapes, 0.25) if dtype == np.int8 else {}
    mean, twin = StreamingMean(shapes, LIMIT), StreamingMean(shapes, LIMIT)
    for count in (3, 5, 1):
        sent = {name: (50 * rng.normal(size=shape)).astype(dtype) for name, shape in shapes.items()}
        sent["action.fortran"] = np.asfortranarray(sent["action.fortran"])
        mean.add(record(sent), {"action.": count}, scales)
        factor = np.float32(0.25 if scales else 1)
        wide = {name: np.ascontiguousarray(value.astype(np.float32) * factor) for name, value in sent.items()}
        twin.add(record(wide), {"action.": count})
    for name in shapes:
        np.testing.assert_array_equal(mean.mean()[name], twin.mean()[name])


def test_widened_updates_are_what_the_mean_would_take():
    sent = record({**steps(1), "action.head": update(1)["action.head"]})
    scales = {name: SCALES[name] for name in SHAPES if name != "action.head"}
    mean, twin = StreamingMean(SHAPES, LIMIT), StreamingMean(SHAPES, LIMIT)
    mean.add(sent, BOTH, scales)
    twin.add(widened(sent, scales), BOTH)
    for name in SHAPES:
        np.testing.assert_array_equal(mean.mean()[name], twin.mean()[name])
    plain = record(update(1))
    assert widened(plain, {}) is plain


BAD_SCALES = {
    "missing": ({**SCALES, "action.head": None}, "scales of the update: missing action.head"),
    "all missing": ({}, "scales of the update: missing "),
    "further": ({**SCALES, "action.extra": 1.0}, "scales of the update: unexpected action.extra"),
    "zero": ({**SCALES, "action.head": 0.0}, "the scale of action.head is 0.0, must be above 0 and at most 7812.5"),
    "negative": ({**SCALES, "action.head": -1.0}, "the scale of action.head is -1.0"),
    "nan": ({**SCALES, "action.head": float("nan")}, "the scale of action.head is nan"),
    "inf": ({**SCALES, "action.head": float("inf")}, "the scale of action.head is inf"),
    "huge": ({**SCALES, "action.head": 7813.0}, "the scale of action.head is 7813.0"),
    "list": ({**SCALES, "action.head": [1.0]}, r"the scale of action.head is \[1.0\]"),
    "true": ({**SCALES, "action.head": True}, "the scale of action.head is True"),
}


@pytest.mark.parametrize("case", BAD_SCALES)
def test_a_bad_scale_is_rejected_and_leaves_no_trace(case):
    scales, message = BAD_SCALES[case]
    told = {name: value for name, value in scales.items() if value is not None}
    assert_rejected(record(steps(9)), BOTH, message, told)
    with pytest.raises(RejectedUpdate, match=message):
        widened(record(steps(9)), told)


def test_a_scale_for_an_array_that_is_not_int8_is_rejected():
    assert_rejected(record(update(9)), BOTH, "scales of the update: unexpected action.head", {"action.head": 1.0})


def assert_rejected(bad: ArrayRecord, counts: dict[str, object], message: str, scales=NO_SCALES) -> None:
    """Rejected with the message both as the first update and after a good one; the mean is bit for bit as before."""
    empty = StreamingMean(SHAPES, LIMIT)
    with pytest.raises(RejectedUpdate, match=message):
        empty.add(bad, counts, scales)
    assert (empty.mean(), empty.updates, set(empty.weights.values())) == ({}, 0, {0})
    mean = StreamingMean(SHAPES, LIMIT)
    mean.add(record(update(1)), BOTH)
    before = numbers(mean)
    with pytest.raises(RejectedUpdate, match=message):
        mean.add(bad, counts, scales)
    assert mean.weights == BOTH
    assert mean.updates == 1
    for name, value in numbers(mean).items():
        np.testing.assert_array_equal(value, before[name])


def test_the_mean_of_the_largest_allowed_differences_stays_finite():
    mean = StreamingMean({"action.w": (1,)}, LIMIT)
    for sign in (1, -1, 1, -1):
        mean.add(record({"action.w": np.array([sign * LARGEST_DIFFERENCE], np.float32)}), {"action.": LIMIT})
    assert abs(mean.mean()["action.w"].item()) < 1


def test_nothing_of_an_update_lives_on_after_it_was_added():
    mean = StreamingMean(SHAPES, LIMIT)
    for seed in range(4):
        arrays = record(update(seed))
        watched = [weakref.ref(arrays), *(weakref.ref(array) for array in arrays.values())]
        mean.add(arrays, BOTH)
        del arrays
        gc.collect()
        assert [ref() for ref in watched] == [None] * len(watched)
    assert sum(value.numel() for value in mean.mean().values()) == 6 + 1 + 4  # one model, however many updates


def test_an_array_is_read_in_place_and_the_mean_is_a_copy():
    array = Array(np.arange(4, dtype=np.float32))
    first, second = read_array(HEAD, array, (4,)), read_array(HEAD, array, (4,))
    assert first.data_ptr() == second.data_ptr()  # both on the bytes' own memory
    mean = StreamingMean({HEAD: (4,)}, LIMIT)
    mean.add(ArrayRecord({HEAD: array}), {"action.": 1})
    mean.mean()[HEAD].mul_(0)
    np.testing.assert_array_equal(array.numpy(), np.arange(4))  # the message is not written to


def test_claimed_examples_come_from_the_metrics():
    assert claimed_examples({"examples.action": 3, "loss.action": 1.0}) == {"anonymizer.": 0, "action.": 3}
