"""The next batch while this one is played: one thread that loads and augments, never more than one batch ahead."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
_END = object()


def worth_a_thread(device: torch.device) -> bool:
    """Whether the next batch is made beside the step: for a GPU, which leaves the CPU idle meanwhile.

    On a CPU the step has all cores, and a thread that takes one of them away keeps the others waiting at every
    operation; that it gains anything there could not be shown (``fedspact bench feed``).
    """
    return device.type != "cpu"


@contextmanager
def prefetched(items: Iterator[Item]) -> Iterator[Iterator[Item]]:
    """The same items in the same order, each made in a thread of its own while the one before it is used.

    ``items`` is advanced in that thread alone: what it draws from its generators does not change, and what it reads
    from context variables is not there. Its errors are raised, with their traceback, where its item would have come.
    Leaving the block waits for the item in the making, if there is one, and ends the thread.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        try:
            pool.submit(_work_alone).result()
        finally:
            torch.set_num_threads(threads)  # what threads that begin later start with

        def taken() -> Iterator[Item]:
            coming = pool.submit(next, items, _END)
            while (item := coming.result()) is not _END:
                coming = pool.submit(next, items, _END)
                yield item  # type: ignore[misc] # _END alone is none, and it ends the loop

        yield taken()


def _work_alone() -> None:
    """One thread of torch's for the thread that calls: a team of its own would slow the step's down.

    With more threads in teams than there are cores GNU OpenMP lets them all sleep instead of spin where they wait for
    each other, which a step of small networks does thousands of times.
    """
    torch.get_num_threads()  # the first look takes over the process' number and would do so later
    torch.set_num_threads(1)
