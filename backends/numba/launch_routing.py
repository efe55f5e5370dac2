"""From plans and arrays to the arguments of the routing kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends.numba.intrinsics import LOGIT_ROW, ROW, strip_rows
from sparsemoc.backends.numba.launch import Floats, counter, key_panels, lanes_of, strip_buffer
from sparsemoc.backends.numba.memory import readable
from sparsemoc.backends.numba.products import address
from sparsemoc.backends.numba.routing import route_units
from sparsemoc.backends.numba.threads import parallel
from sparsemoc.backends.protocol import Problem, Randomness
from sparsemoc.spec.philox import poisson_table
from sparsemoc.spec.sample_plan import SamplePlan


def route_sample(
    problem: Problem,
    plan: SamplePlan,
    q: Floats,
    means: NDArray[np.float32],
    randomness: Randomness | None,
    batch: int,
    selected: NDArray[np.int32],
    threads: int,
) -> None:
    """Run the routing of one sample; `means` is (chunks, kv_heads, head_dim)."""
    if selected.shape[2] == 0 or len(plan.group_lo) == 0:
        return
    one = np.zeros(1, np.int64)
    panels, _ = key_panels(means, one, one + plan.chunks, np.float32, threads)
    most = min(max(problem.plan.spec.max_top_k, 1), plan.chunks)
    top_k = np.array(problem.plan.spec.top_k_of(problem.heads))
    bits, code = readable(q)
    inputs = (bits, code, panels, lanes_of(np.float32), problem.group, address("row", np.float32))
    units = (plan.unit_first, plan.unit_lo, plan.unit_hi, plan.q_start)
    shared = (units, plan.candidate_ptr, plan.candidate_lo, plan.candidate_hi, plan.chunks)
    table, tasks, random = _pieces(plan), counter(), _random(problem, randomness)

    def work(own: int) -> None:
        scratch = (
            strip_buffer(ROW, np.float32),
            strip_buffer(LOGIT_ROW, np.float32),
            np.empty((strip_rows(), most), np.int32),
            np.empty((strip_rows(), most), np.int64),
            np.empty(strip_rows(), np.int64),
        )
        route_units(tasks, table, top_k, inputs, shared, scratch, random, batch, selected)

    parallel(threads, work)


def _pieces(plan: SamplePlan, size: int = 512) -> NDArray[np.int64]:
    """Cut the groups of units into pieces that the workers share out."""
    rows = [
        (group, first, min(first + size, hi))
        for group, (lo, hi) in enumerate(zip(plan.group_lo.tolist(), plan.group_hi.tolist(), strict=True))
        for first in range(lo, hi, size)
    ]
    return np.array(rows, np.int64).reshape(-1, 3)


def _random(problem: Problem, randomness: Randomness | None) -> tuple[Any, ...]:
    """Return the constants of route dropout; the first says whether there is any."""
    dropout = problem.plan.spec.dropout
    if randomness is None or dropout is None:
        return (False, 0, 0, 0, 0, 0, np.zeros(0, np.uint64))
    table = poisson_table(dropout.into, dropout.into_max)
    starts = (randomness.batch_start, randomness.head_start)
    return (True, *randomness.key, *starts, int(dropout.off * 2**16), table)
