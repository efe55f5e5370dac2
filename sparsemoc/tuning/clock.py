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


class EventClock(HostClock):
    """For a GPU: events around each call, which begins with a cold L2 cache, as in a model."""

    turn_s = 0.03
    #: Bytes of a cache whose size is not told.
    CACHE = 2**26

    def event(self) -> Any:
        """Return an event."""
        raise NotImplementedError

    def stream(self) -> Any:
        """Return the stream that calls are made on."""
        raise NotImplementedError

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        raise NotImplementedError

    def flush(self) -> None:
        """Write more than the cache holds, and long enough for the launch of the call to be hidden behind it."""
        raise NotImplementedError

    def milliseconds(self, start: Any, stop: Any) -> float:
        """Return the time between two events."""
        raise NotImplementedError

    def seconds(self, call: Callable[[], object], times: int) -> float:
        """Return the mean seconds of a call on the device."""
        stream, events = self.stream(), [(self.event(), self.event()) for _ in range(times)]
        self.wait()
        for start, stop in events:
            self.flush()
            start.record(stream)
            call()
            stop.record(stream)
        self.wait()
        return sum(self.milliseconds(start, stop) for start, stop in events) / times / 1000


class CudaClock(EventClock):
    """For torch on a GPU."""

    def __init__(self, device: Any) -> None:
        self._torch = import_module("torch")
        self._device = device
        size = int(getattr(self._torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or self.CACHE
        self._written = self._torch.empty(4 * size, dtype=self._torch.int8, device=device)

    def event(self) -> Any:
        """Return an event."""
        return self._torch.cuda.Event(enable_timing=True)

    def stream(self) -> Any:
        """Return the stream that calls are made on."""
        return self._torch.cuda.current_stream(self._device)

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        self._torch.cuda.synchronize(self._device)

    def flush(self) -> None:
        """Empty the cache."""
        self._written.zero_()

    def milliseconds(self, start: Any, stop: Any) -> float:
        """Return the time between two events."""
        return float(start.elapsed_time(stop))


class CupyClock(EventClock):
    """For CuPy, on the device of an array, which is the current one wherever its calls are made."""

    def __init__(self, device: Any) -> None:
        self._cupy = import_module("cupy")
        self._device = device
        size = int(device.attributes.get("L2CacheSize", 0)) or self.CACHE
        self._written = self._cupy.empty(4 * size, dtype="int8")

    def event(self) -> Any:
        """Return an event."""
        return self._cupy.cuda.Event()

    def stream(self) -> Any:
        """Return the stream that calls are made on."""
        return self._cupy.cuda.get_current_stream()

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        self._device.synchronize()

    def flush(self) -> None:
        """Empty the cache."""
        self._written.fill(0)

    def milliseconds(self, start: Any, stop: Any) -> float:
        """Return the time between two events."""
        return float(self._cupy.cuda.get_elapsed_time(start, stop))


def clock_of(problem: Problem, array: Any) -> Clock:
    """Return the clock for calls on a problem; `array` is one of theirs."""
    if problem.framework == "jax":
        return JaxClock()
    if problem.framework == "torch" and problem.device == "cuda":
        return CudaClock(array.device)
    if problem.framework == "cupy":
        return CupyClock(array.device)
    return HostClock()
