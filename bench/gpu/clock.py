"""Time on the device: events around each call, all sides in turn, and the cache emptied before short calls."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from functools import cache
from statistics import median
from typing import Any

import numpy as np

from bench.gpu.report import Report, Setup
from bench.peers.peer import first_line
from bench.timing import Times
from sparsemoc.spec.errors import UnsupportedError

Call = Callable[[], Any]

#: A turn repeats a short call until it lasts about this long, so many times at most.
TURN_SECONDS, MOST_CALLS = 0.1, 50
#: Calls below this many seconds find the L2 cache emptied; longer ones fill it themselves.
SHORT_SECONDS = 0.01
#: Bytes that are overwritten to empty it: several times the largest L2.
FLUSH_BYTES = 2**28
#: Calls before a capture.
WARM_UPS = 3


def usable(report: Report, case: str, calls: Mapping[str, Call], *, peers: bool = False) -> dict[str, Call]:
    """Call each once, which compiles it, and return those that can run; tell of the others.

    Args:
        report, case: where to.
        calls: by name.
        peers: whether any error leaves a call out; of our own only what we refuse, and other errors are raised.
    """
    kept, left_out = {}, {}
    for name, call in calls.items():
        try:
            call()
            wait(report.setup)
            kept[name] = call
        except Exception as error:
            if not peers and not isinstance(error, UnsupportedError):
                raise
            left_out[name] = first_line(error)
        if name in left_out:  # here, where the error holds no arrays any more
            report.skip(case, name, left_out[name])
            _free(report.setup)
    return kept


def _free(setup: Setup) -> None:
    """Give back the memory that a failed call has left."""
    gc.collect()
    if setup.cuda:
        import torch

        torch.cuda.empty_cache()


def interleaved(calls: Mapping[str, Call], rounds: int, setup: Setup) -> Times:
    """Time calls that have been warmed up, each once in each round; every other round goes backwards.

    A turn of a short call is several calls, queued one after another as in a model, and counts by its median.

    Args:
        calls: what to time, by name. A result is dropped at once.
        rounds: how many rounds; with --quick a call is made once.
        setup: the device.
    """
    once = {name: _turn(call, 1, setup, flush=False) for name, call in calls.items()}
    if setup.quick:
        return Times({name: np.array([seconds]) for name, seconds in once.items()})
    turns = {
        name: (min(MOST_CALLS, max(1, round(TURN_SECONDS / max(seconds, 1e-6)))), seconds < SHORT_SECONDS)
        for name, seconds in once.items()
    }
    seconds = {name: np.empty(rounds) for name in calls}
    gc.collect()
    for round_ in range(rounds):
        for name in list(calls)[:: 1 if round_ % 2 == 0 else -1]:
            count, flush = turns[name]
            seconds[name][round_] = _turn(calls[name], count, setup, flush)
    return Times(seconds)


def _turn(call: Call, count: int, setup: Setup, flush: bool) -> float:
    """Return the median seconds of a few calls in a row."""
    if not setup.cuda:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    import torch

    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for start, end in events:
        if flush:
            _junk().zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    milliseconds: list[float] = [start.elapsed_time(end) for start, end in events]
    return median(milliseconds) / 1e3


@cache
def _junk() -> Any:
    import torch

    return torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")


def wait(setup: Setup) -> None:
    """Wait for the device, so that what it met is raised here."""
    if setup.cuda:
        import torch

        torch.cuda.synchronize()


def captured(call: Call) -> tuple[Any, Any]:
    """Capture a call in a CUDA graph; return the graph and the result that each replay writes."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


def replayed(call: Call) -> Call:
    """Return the replay of a call, captured once."""
    graph, result = captured(call)

    def replay() -> Any:
        graph.replay()
        return result

    return replay
