"""Peak memory is this process' own, whoever started it."""

import subprocess
import sys

import numpy as np

from spact_models.resident import peak_rss_mb

CHILD = "from spact_models.resident import peak_rss_mb; print(peak_rss_mb())"


def test_what_was_held_is_remembered():
    before = peak_rss_mb()
    held = np.ones(int((before + 64) * 2**20) // 8)
    assert peak_rss_mb() > before + 60
    del held
    assert peak_rss_mb() > before + 60


def test_a_child_is_not_charged_with_its_parent():
    held = np.ones(400 * 2**20 // 8)
    assert peak_rss_mb() > 400
    child = subprocess.run([sys.executable, "-c", CHILD], check=True, capture_output=True, text=True).stdout
    assert 5 < float(child) < 200
    assert held.any()
