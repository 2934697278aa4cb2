"""Aggregation as the benchmark measures it: the right amount of work, and one reply in memory whatever their number."""

import pytest

from simulations.benchmarks.aggregation_data import measure_aggregation, measure_peak_memory


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_every_type_is_measured_over_as_many_values(dtype):
    told = measure_aggregation(sites=2, megabytes=1, dtype=dtype, repeats=1)
    assert (told["sites"], told["dtype"], told["megabytes"]) == (2, dtype, 1.0)
    ratio = told["seconds_add"]["median"] / told["seconds"]["median"]  # of one repeat
    assert told["ratio"] == {name: pytest.approx(ratio) for name in ("median", "low", "high")}


def test_the_peak_does_not_grow_with_the_number_of_sites():
    """Ten more sites of 20 MB cost less than one model more: the weights, the mean and one reply are always there."""
    few, many = (measure_peak_memory(sites, 20, "float32") for sites in (2, 12))
    assert many - few < 20
