"""Timing side by side: rounds in which every call takes its turn, so that a noisy spell hits all of them."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: A turn repeats short calls until it lasts about this long.
TURN_SECONDS = 0.2


@dataclass(frozen=True)
class Summary:
    """Median and quantiles over the rounds."""

    median: float
    p20: float
    p80: float


@dataclass(frozen=True, eq=False)
class Times:
    """Seconds of one call, (rounds,), under the name of what was called."""

    seconds: Mapping[str, NDArray[np.float64]]

    def summary(self, name: str) -> Summary:
        """Return median, 20th and 80th percentile of the seconds of a call."""
        return _summary(self.seconds[name])

    def ratio(self, over: str, under: str) -> Summary:
        """Return the same of the quotients round by round: the two times of a round saw the same machine."""
        return _summary(self.seconds[over] / self.seconds[under])


def _summary(values: NDArray[np.float64]) -> Summary:
    p20, median, p80 = np.quantile(values, (0.2, 0.5, 0.8)).tolist()
    return Summary(median, p20, p80)


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    turn: float | None = None,
    long: float = math.inf,
    warm: Mapping[str, float] | None = None,
) -> Times:
    """Warm up, then time every call once in each round; every other round goes backwards.

    Args:
        calls: what to time, by name. A result is dropped at once.
        rounds: how many rounds.
        turn: seconds that a turn of a short call lasts, None for `TURN_SECONDS`.
        long: seconds from which on a call is its whole turn, without one before it that is not timed.
        warm: seconds of calls that have been made before; of those the long ones are not warmed up again.
    """
    least, known = TURN_SECONDS if turn is None else turn, dict(warm or {})
    for name, call in calls.items():
        if known.get(name, 0.0) < long:
            call()  # compiles, and touches memory for the first time
            known[name] = _seconds(call, 1)
    turns = {name: max(1, math.ceil(least / max(known[name], 1e-6))) for name in calls}
    seconds = {name: np.empty(rounds) for name in calls}
    gc.collect()
    for round_ in range(rounds):
        names = list(calls)[:: 1 if round_ % 2 == 0 else -1]
        for name in names:
            # Memory that lay idle while the others ran comes back slowly: a turn begins with a call that is not timed.
            if known[name] < long:
                calls[name]()
            seconds[name][round_] = _seconds(calls[name], turns[name])
    return Times(seconds)


def _seconds(call: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times
