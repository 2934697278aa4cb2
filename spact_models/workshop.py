"""Independent jobs on a CPU's cores at the same time: fresh networks of the judge, sites of a simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

import torch

Key = TypeVar("Key")
Answer = TypeVar("Answer")
Progress = Callable[[], object]


class Workshop:
    """Independent jobs at the same time on a CPU's cores, one after the other on a GPU; a batch is begun, then taken.

    Small networks do not keep several cores busy with one step: on 2 cores, two of them side by side with one thread
    each take two thirds of the time of one after the other with two threads. A batch that is begun before the last one
    is taken finds the core that the last one's end leaves idle. A job sees the context variables of who began it.

    When a job fails, or the user interrupts, those that wait are not begun, and ``on_failure`` is called, which may
    tell those that run. To be left as a context.

    Args:
        most: jobs at the same time; as many as torch has threads otherwise. With more than that they share the cores.

    Attributes:
        workers: jobs at the same time; with one, a job is done when its batch is taken, and by whom.
    """

    def __init__(self, device: torch.device, on_failure: Progress = lambda: None, most: int | None = None) -> None:
        self._threads = torch.get_num_threads()
        self._on_failure = on_failure
        self.workers = 1 if device.type != "cpu" else most or self._threads
        self._pool: ThreadPoolExecutor | None = None
        if self.workers > 1:
            each = max(1, self._threads // self.workers)
            self._pool = ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(each,))

    def start(self, job: Callable[[], Answer]) -> Callable[[], Answer]:
        """Queue one job; calling what is returned waits for its answer."""
        return job if self._pool is None else self._pool.submit(copy_context().run, job).result

    def begin(self, jobs: Mapping[Key, Callable[[], Any]]) -> Callable[[], dict[Key, Any]]:
        """Queue a batch; calling what is returned waits for it and gives its answers by key."""
        running = {key: self.start(job) for key, job in jobs.items()}
        return lambda: {key: answer() for key, answer in running.items()}

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._on_failure()
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=kind is not None)
        torch.set_num_threads(self._threads)


def side_by_side(
    jobs: Mapping[Key, Callable[[], Any]], device: torch.device, on_failure: Progress = lambda: None
) -> dict[Key, Any]:
    """One batch of jobs in a :class:`Workshop` of its own."""
    with Workshop(device, on_failure, max(1, min(len(jobs), torch.get_num_threads()))) as workshop:
        return workshop.begin(jobs)()
