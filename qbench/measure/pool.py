"""Do many pieces of work that need no device in several processes, which share the heavy imports."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

from qbench.measure.executors.local import ensure_server
from qbench.measure.start import safe_path
from qbench.quiet import quiet_libraries

PRELOAD = ("qbench.runs.plan_preload",)
"""What the fork server of a pool imports."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def num_cores() -> int:
    """Return how many cores this process may use: one where it is a daemon, which may start no others."""
    if multiprocessing.current_process().daemon:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], num_processes: int
) -> Iterator[tuple[int, Result]]:
    """Yield (index, result) of each item as it is done, in whatever order.

    `work` and what it raises travel by pickle; an exception of one item ends the iteration. The processes
    see no GPU.
    """
    with open_pool(num_processes) as pool:
        futures = {pool.submit(work, item): index for index, item in enumerate(items)}
        for future in as_completed(futures):
            yield futures[future], future.result()


@contextmanager
def open_pool(num_processes: int) -> Iterator[Executor]:
    """Yield an executor of so many processes, which see no GPU; work that waits at the end is given up."""
    context: Any = multiprocessing.get_context()
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        ensure_server(PRELOAD)
    # The pool starts a process of its own, and its first pieces of work start the others.
    with safe_path():
        pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=_start)
        for _ in range(num_processes):
            pool.submit(os.getpid)
    with pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    quiet_libraries()
