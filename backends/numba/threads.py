"""The threads of a call: as many as the user has set, never more.

Kernels are compiled to release the GIL and run on plain Python threads that take units of work from a counter. So no
OpenMP or TBB runtime is involved, and two Python threads that call at once are safe: calls take turns.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import numba
import numba.np.ufunc.parallel
import threadpoolctl


class _Team:
    """The lock that makes calls take turns, and the threads besides the caller's."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.helpers: ThreadPoolExecutor | None = None
        self.size = 0

    def of(self, size: int) -> ThreadPoolExecutor:
        if self.helpers is None or self.size < size:
            if self.helpers is not None:
                self.helpers.shutdown()
            self.helpers, self.size = ThreadPoolExecutor(size, thread_name_prefix="sparsemoc"), size
        return self.helpers


_TEAM = _Team()


def _forget() -> None:
    """Start anew in a forked child, which has none of its parent's threads."""
    _TEAM.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@cache
def _pools() -> tuple[threadpoolctl.ThreadpoolController, dict[str, int]]:
    """Return the thread pools of the loaded libraries, and their sizes when first asked."""
    controller = threadpoolctl.ThreadpoolController()
    return controller, {pool["filepath"]: pool["num_threads"] for pool in controller.info()}


def _numba_threads() -> int:
    """Return what numba.get_num_threads() would, without starting Numba's own threads.

    That would load an OpenMP runtime: a torch imported later then ran its attention six times slower.
    """
    if getattr(numba.np.ufunc.parallel, "_is_initialized", True):
        return int(numba.get_num_threads())
    return int(numba.config.NUMBA_NUM_THREADS)


def thread_count() -> int:
    """Return the number of threads for a call.

    It is Numba's number, which follows NUMBA_NUM_THREADS and numba.set_num_threads; and no more than a threadpoolctl
    limit in force, seen as a pool that is smaller than it was.
    """
    controller, sizes = _pools()
    limits = [pool["num_threads"] for pool in controller.info() if pool["num_threads"] < sizes[pool["filepath"]]]
    count: int = max(1, min([_numba_threads(), *limits]))
    return count


@contextmanager
def workers() -> Iterator[int]:
    """Hold the turn for a call, and yield its number of threads."""
    with _TEAM.turn:
        yield thread_count()


def parallel(threads: int, work: Callable[[int], object]) -> None:
    """Run work(0) ... work(threads - 1) at once, the first on the caller's thread; raise what any of them raises."""
    if threads == 1:
        work(0)
        return
    helpers = _TEAM.of(threads - 1)
    running = [helpers.submit(work, worker) for worker in range(1, threads)]
    try:
        work(0)
    finally:
        for future in running:
            future.result()
