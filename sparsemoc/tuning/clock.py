"""Clocks: how long a call takes, measured as the library of its arrays demands."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

from sparsemoc.backends import Problem


class Clock(Protocol):
    """What measures.

    Attributes:
        turn_s: seconds for which short calls are repeated, so that they can be told from noise.
    """

    turn_s: float

    def now(self) -> float:
        """Return the seconds since some moment."""

    def seconds(self, call: Callable[[], object], times: int) -> float:
        """Return the mean seconds of a call that is made `times` times, after all that was under way is done."""


class HostClock:
    """For calls that have done their work when they return."""

    turn_s = 0.1

    def now(self) -> float:
        """Return the seconds since some moment."""
        return time.perf_counter()

    def seconds(self, call: Callable[[], object], times: int) -> float:
        """Return the mean seconds of a call."""
        start = self.now()
        for _ in range(times):
            call()
        return (self.now() - start) / times


class JaxClock(HostClock):
    """For JAX, whose calls return before the work is done."""

    def seconds(self, call: Callable[[], object], times: int) -> float:
        """Return the mean seconds of a call and of its results to be there."""
        wait = import_module("jax").block_until_ready
        return super().seconds(lambda: wait(call()), times)


class CudaClock(HostClock):
    """For torch on a GPU: events around each call, which begins with a cold L2 cache, as in a model."""

    turn_s = 0.03

    def __init__(self, device: Any) -> None:
        self._torch = import_module("torch")
        self._device = device
        size = int(getattr(self._torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or 2**26
        # Writing it empties the cache, and lasts long enough for the launch of the call to be hidden behind it.
        self._flush = self._torch.empty(4 * size, dtype=self._torch.int8, device=device)

    def seconds(self, call: Callable[[], object], times: int) -> float:
        """Return the mean seconds of a call on the device."""
        cuda, stream = self._torch.cuda, self._torch.cuda.current_stream(self._device)
        events = [(cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)) for _ in range(times)]
        cuda.synchronize(self._device)
        for start, stop in events:
            self._flush.zero_()
            start.record(stream)
            call()
            stop.record(stream)
        cuda.synchronize(self._device)
        return sum(float(start.elapsed_time(stop)) for start, stop in events) / times / 1000


def clock_of(problem: Problem, array: Any) -> Clock:
    """Return the clock for calls on a problem; `array` is one of theirs."""
    if problem.framework == "jax":
        return JaxClock()
    if problem.framework == "torch" and problem.device == "cuda":
        return CudaClock(array.device)
    return HostClock()
