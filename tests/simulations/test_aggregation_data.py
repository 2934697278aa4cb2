"""Aggregation as the benchmark measures it: the right amount of work, and one reply in memory whatever their number."""

import pytest

from simulations.benchmarks.aggregation_data import measure_aggregation, measure_peak_memory
from simulations.benchmarks.server_memory import SMALL, measure


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_every_type_is_measured_over_as_many_values(dtype):
    told = measure_aggregation(sites=2, megabytes=1, dtype=dtype, repeats=1)
    assert (told["sites"], told["dtype"], told["megabytes"]) == (2, dtype, 1.0)
    ratio = told["seconds_add"]["median"] / told["seconds"]["median"]  # of one repeat
    assert [told["ratio"][name] for name in ("median", "low", "high")] == [pytest.approx(ratio)] * 3


def test_the_peak_does_not_grow_with_the_number_of_sites():
    """Ten more sites of 40 MB cost less than one model and a half more (a process's peak scatters by up to 18 MB)."""
    few, many = (measure_peak_memory(sites, 40, "float32") for sites in (2, 12))
    assert many - few < 60  # were they held, it would be 400


@pytest.mark.slow
def test_the_server_of_a_real_run_holds_no_more_beside_12_sites_than_beside_3():
    """Real SuperLink and ServerApp; the updates of all sites, 9 MB each, are on their way at the same time."""
    few, many = (measure(sites, SMALL) for sites in (3, 12))
    assert [len(found["rounds"][0]["sites"]) for found in (few, many)] == [3, 12]
    assert many["server_mb"] - few["server_mb"] < 2 * many["model_mb"]  # one, and what a process's peak scatters by
