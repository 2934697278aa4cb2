"""Cells side by side: one fresh process each, so many at a time, and nothing left running when this one ends.

Cells share nothing, so N of them on one thread each use N cores fully, which one small network with N threads does not.
A fresh process for each makes its peak memory its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from simulations.compare.plan import Order
from simulations.progress import progress_bar
from spact_models.errors import RunStopped, UserError

Running = tuple[BaseProcess, Connection, Order]
SECONDS_A_LOOK = 1.0  # so often the bar's clock moves
SECONDS_TO_END = 10.0  # after SIGTERM, before SIGKILL


def make_cells(orders: Sequence[Order], workers: int) -> None:
    """Make every cell, ``workers`` at a time, in the given order; on an error or Ctrl-C all of them are stopped.

    Raises:
        UserError: what a cell could not do, with its name.
        RuntimeError: a cell failed by a fault of ours, or was killed; its log says more.
    """
    waiting, running = list(orders), dict[Any, Running]()
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's threads
    os.environ["TQDM_DISABLE"] = "1"  # for the cells, whose own bars nobody sees; tqdm is imported here already
    with progress_bar("compare", "cell", len(waiting), shown=bool(waiting)) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    order = waiting.pop(0)
                    here, there = context.Pipe(duplex=False)
                    process: BaseProcess = context.Process(
                        target=_work, args=(order, there), name=order.cell.name, daemon=True
                    )
                    process.start()
                    there.close()  # so that the end of the process is the end of the pipe
                    running[process.sentinel] = (process, here, order)
                names = " ".join(order.cell.name for _, _, order in running.values())
                if names != bar.postfix or sys.stderr.isatty():
                    bar.set_postfix_str(names)
                for sentinel in wait(list(running), timeout=SECONDS_A_LOOK):
                    process, pipe, order = running.pop(sentinel)
                    process.join()
                    _raise_failure(process, pipe, order)
                    bar.update()
        finally:
            _stop([process for process, _, _ in running.values()])


def _work(order: Order, told: Connection) -> None:
    """The whole life of a cell's process; what it says goes to its log, how it failed through ``told``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    _end_with_parent()
    _speak_to(order.log)
    try:
        import torch  # seconds, after the two lines that must not wait for them

        from simulations.compare.cell import make_cell

        torch.set_num_threads(1)
        make_cell(order)
    except (UserError, RunStopped) as error:
        told.send(("user", str(error)))
    except Exception as error:
        traceback.print_exc()
        told.send(("fault", f"{type(error).__name__}: {error}"))
    sys.stdout.flush()


def _end_with_parent() -> None:
    """A killed parent cannot stop its cells: each watches it, so that none writes into a folder taken up again."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(join: Callable[[], None]) -> None:
        join()
        os._exit(1)

    threading.Thread(target=watch, args=(parent.join,), daemon=True).start()


def _speak_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


def _raise_failure(process: BaseProcess, pipe: Connection, order: Order) -> None:
    try:
        kind, message = pipe.recv()
    except EOFError:  # it had nothing to complain about, or no time to
        if process.exitcode == 0:
            return
        how = f"ended with status {process.exitcode}"
        reason = "killed, perhaps for memory: try fewer --workers" if process.exitcode == -signal.SIGKILL else "see"
        raise RuntimeError(f"cell {order.cell.name} {how} ({reason}; {order.log}); finished cells are kept") from None
    finally:
        pipe.close()
    if kind == "user":
        raise UserError(f"cell {order.cell.name}: {message}")
    raise RuntimeError(f"cell {order.cell.name}: {message} ({order.log}); finished cells are kept")


def _stop(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(SECONDS_TO_END)
        if process.is_alive():
            process.kill()
            process.join()
