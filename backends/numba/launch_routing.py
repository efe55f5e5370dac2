"""From plans and arrays to the arguments of the routing kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends.numba.intrinsics import ROW, STRIP
from sparsemoc.backends.numba.launch import Floats, counter, lanes_of, padded
from sparsemoc.backends.numba.memory import aligned, readable
from sparsemoc.backends.numba.products import address
from sparsemoc.backends.numba.routing import LANES, PANEL, route_units
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
    most = min(max(problem.plan.spec.max_top_k, 1), plan.chunks)
    top_k = np.array(problem.plan.spec.top_k_of(problem.heads))
    bits, code = readable(q)
    depth = padded(q.shape[2], lanes_of(np.float32))
    inputs = (bits, code, _rows(means), problem.group, address("row", np.float32))
    units = (plan.unit_first, plan.unit_lo, plan.unit_hi, plan.q_start)
    shared = (units, plan.candidate_ptr, plan.candidate_lo, plan.candidate_hi)
    table, tasks, random = _pieces(plan), counter(), _random(problem, randomness)

    def work(own: int) -> None:
        scratch = routing_scratch(depth, most)
        route_units(tasks, table, top_k, inputs, shared, scratch, random, batch, selected)

    parallel(min(threads, len(table) * q.shape[1]), work)


def _rows(means: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the centroids (chunks, kv_heads, head_dim) as rows (kv_heads, chunks, ROW), the stride of a strip."""
    rows = aligned((means.shape[1], means.shape[0], ROW), np.float32)
    rows[:, :, : means.shape[2]] = means.transpose(1, 0, 2)
    rows[:, :, means.shape[2] :] = 0
    return rows


def routing_scratch(depth: int, most: int) -> tuple[Floats, ...]:
    """Return a worker's scratch: loaded units, panel, scores of a strip; and lists of ranks, chunks and limits."""
    loaded, panel = aligned((PANEL, depth), np.float32), aligned((depth, PANEL), np.float32)
    loaded[:], panel[:] = 0, 0
    lists = (aligned((most, PANEL), np.int32), aligned((most, PANEL), np.int32), aligned((2, LANES), np.float32))
    return (loaded, panel, aligned((STRIP, PANEL), np.float32), *lists)


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
