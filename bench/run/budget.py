"""Time: what is left of a run, and what a contender will take of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sparsemoc.backends.workload import workloads
from sparsemoc.spec.plan import Plan
from sparsemoc.tuning.problems import NamedProblem

#: Calls of a contender beside its rounds: the first, one more for the check, one for its memory, and two to warm up.
BESIDE = 5
#: Seconds that the forward of one setting should take, which says how many heads are measured.
TARGET = {"cpu": 1.0, "cuda": 0.25}
#: Share of the peak that our backends may reach.
SHARE = 0.5


@dataclass(eq=False)
class Budget:
    """The seconds of a run."""

    seconds: float
    _start: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.seconds - (time.monotonic() - self._start))


@dataclass(frozen=True)
class Pace:
    """How calls are timed.

    Attributes:
        rounds: of a setting.
        turn: seconds of a turn of a short call.
        long: seconds from which on a call is its whole turn, and is not warmed up.
    """

    rounds: int
    turn: float
    long: float

    def needed(self, seconds: float) -> float:
        """Return the seconds that a contender takes whose call takes so many."""
        if seconds >= self.long:
            return (BESIDE - 2 + self.rounds) * seconds
        return BESIDE * seconds + self.rounds * (seconds + max(seconds, self.turn))


def expected_pairs(plan: Plan, heads: int) -> int:
    """Return the pairs that a layout of a plan keeps, as far as that is known before it is routed."""
    return heads * sum(round(one.anchored + one.routed_pairs) for one in workloads(plan))


def heads_that_fit(problem: NamedProblem, plan: Plan, flops_per_s: float, device: str) -> int:
    """Return how many heads to measure: the cost of a call is linear in them."""
    flops = 2 * expected_pairs(plan, 1) * (problem.head_dim + problem.v_head_dim)
    most = int(TARGET[device] * SHARE * flops_per_s / max(flops, 1))
    group = problem.heads // problem.kv_heads
    return max(group, min(problem.heads, most // group * group))


def no_time(what: str, needed: float, left: float) -> str:
    """Return the reason of a record that the budget has no room for."""
    return f"skipped: {what} takes about {needed:.3g} s, {left:.3g} s of --budget-s are left"
