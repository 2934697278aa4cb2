"""Rules that a few bad sites cannot bend, and a bound on the length of one update.

``median`` and ``trimmed_mean`` (Yin et al. 2018) go coordinate by coordinate; ``krum`` and ``multi_krum`` (Blanchard et
al. 2017) keep the updates that lie closest to others. All need every update of the round at once, so the updates are
written to files as they arrive and read back a stretch of coordinates at a time: memory stays the same whatever the
number of sites, the disk holds one float32 copy of each update until the round is over.

Every site weighs 1: how many examples stand behind an update is the site's own word. Each branch (f_A, f_T) is a
federation of its own, since not every site sends both; one with fewer updates than the rule needs stays as it is.
None of this can run where single updates are hidden from the server (secure aggregation).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor

from server.aggregate import NO_SCALES, StreamingMean, check_array, check_names, read_array, widened
from spact_models.errors import UserError
from spact_models.exchange import BRANCHES, length
from spact_models.round_settings import StrategyConfig

VALUES_AT_ONCE = 1 << 22  # float32 values of all sites together in memory: 16 MiB, and some times that while sorting
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float32]]  # updates x coordinates


def bounded(
    arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], bound: float
) -> tuple[Mapping[str, Array], float]:
    """An update whose L2 norm over all its arrays is at most ``bound``, and the norm that it came with.

    A longer one is scaled down, not refused: its direction may be an honest site's with much to say, all influence is
    bounded either way, and a bound set too low then slows a run and does not end it. What is not finite or not ours
    is passed on as it is, for the collector to refuse by name.

    Raises:
        RejectedUpdate: an array is not what it must be.
    """
    values = {name: read_array(name, array, shapes[name]) for name, array in arrays.items() if name in shapes}
    norm = length(values)
    if not bound < norm < math.inf:
        return arrays, norm
    scaled = {name: Array((value.float() * (bound / norm)).numpy()) for name, value in values.items()}
    return {**arrays, **scaled}, norm


class SpooledRule(StreamingMean):
    """Takes updates as :class:`StreamingMean` does, with the same checks, and combines them by a robust rule.

    Args:
        shapes: every name that may come, with its shape.
        config: ``aggregation``, ``bad_sites``, ``max_examples``.
        folder: where the updates lie during the round; None: the system's folder for temporary files.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], config: StrategyConfig, folder: Path | None) -> None:
        super().__init__(shapes, config.max_examples, "equal")
        self._config = config
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="round-", dir=folder)
        self._files: dict[str, list[Path]] = {prefix: [] for prefix in BRANCHES}
        self.unmoved: list[str] = []  # branches that stay as they are, with the reason
        self._numbers: dict[str, list[int]] = {prefix: [] for prefix in BRANCHES}  # of each file's update
        self.chosen: dict[str, list[int]] = {}  # by krum and multi_krum: which updates, counted from 0 as they came

    def add(
        self, arrays: Mapping[str, Array], examples: Mapping[str, object], scales: Mapping[str, object] = NO_SCALES
    ) -> None:
        """Check one update, then write it down, int8 as float32. ``examples``: branch prefix -> count; 0 = not sent.

        Raises:
            RejectedUpdate: a value breaks a rule; nothing has been kept.
            UserError: the disk is full.
        """
        arrays = widened(arrays, scales)
        counts = self._check_counts(examples)
        names = [name for name in self._shapes if name.startswith(tuple(counts))]
        check_names(arrays, names)
        for name in names:
            check_array(name, arrays[name], self._shapes[name])
        for prefix in counts:
            path = Path(self._folder.name) / f"{prefix}{len(self._files[prefix]):05d}.f32"
            try:
                with path.open("wb") as file:
                    for name in self._names(prefix):
                        read_array(name, arrays[name], self._shapes[name]).float().numpy().tofile(file)
            except OSError as error:
                raise UserError(
                    f"{path.parent}: cannot be written ({error.strerror or error}). strategy.aggregation = "
                    f"{self._config.aggregation!r} needs room for one update a site there; free that disk."
                ) from error
            self._files[prefix].append(path)
            self._numbers[prefix].append(self.updates)
            self.weights[prefix] += 1
        self.updates += 1

    def mean(self) -> dict[str, Tensor]:
        """What the rule makes of the updates, by name, float32; without the branches that had too few of them."""
        needed, out = self._config.least_updates, {}
        for prefix, files in self._files.items():
            if not files:
                continue
            if len(files) < needed:
                rule = f"{self._config.aggregation} against {self._config.bad_sites} bad sites needs {needed}"
                self.unmoved.append(f"{prefix[:-1]} stays as it is: {len(files)} updates, {rule}")
                continue
            out.update(self._split(prefix, self._combine(prefix, files)))
        return out

    def close(self) -> None:
        """Delete the round's files."""
        self._folder.cleanup()

    def _combine(self, prefix: str, files: list[Path]) -> Tensor:
        rule, bad = self._config.aggregation, self._config.bad_sites
        if rule == "median":
            return self._by_coordinate(prefix, files, median)
        if rule == "trimmed_mean":
            return self._by_coordinate(prefix, files, lambda values_NC: trimmed_mean(values_NC, bad))
        kept = 1 if rule == "krum" else len(files) - bad
        chosen = np.argsort(krum_scores(self._distances(prefix, files), bad), kind="stable")[:kept]
        self.chosen[prefix] = sorted(self._numbers[prefix][index] for index in chosen)
        nearest = [files[index] for index in sorted(chosen)]
        return self._by_coordinate(prefix, nearest, lambda values_NC: values_NC.mean(axis=0, dtype=np.float64))

    def _by_coordinate(self, prefix: str, files: list[Path], rule: Callable[[Matrix], np.ndarray]) -> Tensor:
        out = np.empty(self._size(prefix), np.float32)
        for start, values_NC in self._stretches(prefix, files):
            out[start : start + values_NC.shape[1]] = rule(values_NC)
        return torch.from_numpy(out)

    def _distances(self, prefix: str, files: list[Path]) -> np.ndarray:
        """Squared L2 distance of each pair, (N, N), summed in float64 over the stretches."""
        apart_NN = np.zeros((len(files), len(files)))
        for _, values_NC in self._stretches(prefix, files):
            for index, value_C in enumerate(values_NC):
                gap = values_NC[index + 1 :] - value_C
                apart_NN[index, index + 1 :] += np.einsum("nc,nc->n", gap, gap, dtype=np.float64)
        return apart_NN + apart_NN.T

    def _stretches(self, prefix: str, files: list[Path]):  # type: ignore[no-untyped-def]
        """Offset and values (N, C) of one stretch of coordinates after the other."""
        length = max(1, VALUES_AT_ONCE // len(files))
        for start in range(0, self._size(prefix), length):
            count = min(length, self._size(prefix) - start)
            rows = [np.fromfile(file, np.float32, count, offset=4 * start) for file in files]
            yield start, np.stack(rows)

    def _names(self, prefix: str) -> list[str]:
        return [name for name in self._shapes if name.startswith(prefix)]

    def _size(self, prefix: str) -> int:
        return sum(math.prod(self._shapes[name]) for name in self._names(prefix))

    def _split(self, prefix: str, flat: Tensor) -> dict[str, Tensor]:
        names = self._names(prefix)
        parts = torch.split(flat, [math.prod(self._shapes[name]) for name in names])
        return {name: part.view(self._shapes[name]) for name, part in zip(names, parts, strict=True)}


def median(values_NC: Matrix) -> np.ndarray:
    """The middle of each coordinate; of an even number the mean of the two in the middle."""
    half = values_NC.shape[0] // 2
    middle = [half] if values_NC.shape[0] % 2 else [half - 1, half]
    parted: np.ndarray = np.partition(values_NC, middle, axis=0)[middle].mean(axis=0, dtype=np.float64)
    return parted


def trimmed_mean(values_NC: Matrix, trimmed: int) -> np.ndarray:
    """Each coordinate's mean without its ``trimmed`` least and ``trimmed`` largest values."""
    ordered = np.sort(values_NC, axis=0)
    kept: np.ndarray = ordered[trimmed : values_NC.shape[0] - trimmed].mean(axis=0, dtype=np.float64)
    return kept


def krum_scores(apart_NN: np.ndarray, bad: int) -> np.ndarray:
    """Each update's summed squared distance to its N - bad - 2 nearest others; small is trustworthy."""
    count = apart_NN.shape[0]
    others = np.sort(apart_NN + np.diag(np.full(count, np.inf)), axis=1)
    scores: np.ndarray = others[:, : count - bad - 2].sum(axis=1)
    return scores
