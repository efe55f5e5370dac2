"""The routing kernels run by the emulator, and what plain NumPy makes of the same plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsemoc.backends.cupy.config import CupyConfig
from sparsemoc.backends.cupy.machine import Machine, machine_of
from sparsemoc.backends.cupy.tables import DeviceTables, device_tables, ends_of
from sparsemoc.backends.planning.ends import Ends
from sparsemoc.spec.plan import Plan
from sparsemoc.spec.routing import RouteDropout
from sparsemoc.testing import oracle_random

ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16")
DTYPES = ("float32", "float16", "bfloat16")
MACHINE: Machine = machine_of(np.zeros(1))
#: Tiles so small that a few tokens fill several.
SMALL = CupyConfig(pool_warps=4, route_warps=1, route_chunks=16, index_rows=16)


def of_dtype(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return numbers in a dtype, that of ml_dtypes among them."""
    return array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def tables_of(plan: Plan, key_lengths: NDArray[np.int32] | None = None) -> tuple[DeviceTables, Ends]:
    """Return a plan's tables on the CPU, and the ends of a call."""
    tables = device_tables(plan, key_lengths is not None, MACHINE)
    return tables, ends_of(tables, key_lengths)


class UnitRoutes(NamedTuple):
    """A routing unit of one sample.

    Attributes:
        row: batch row of the arrays; packed: 0.
        sample: batch row, or sample of a packed batch: the first counter of route dropout.
        lo, hi: its valid rows.
        position: its nominal first position within the sample.
        candidates: chunk numbers within the sample, ascending.
        base: number of the sample's first chunk among the centroids.
    """

    row: int
    sample: int
    lo: int
    hi: int
    position: int
    candidates: NDArray[np.int64]
    base: int


def units(plan: Plan, batch: int, key_lengths: NDArray[np.int32] | None) -> Iterator[UnitRoutes]:
    """Yield the routing units that have candidates, as the compiled spec knows them."""
    base = 0
    for number, sample in enumerate(plan.batch(batch, key_lengths)):
        shift, own = sample.q_row - sample.plan.q_start, sample.plan
        for lo, hi, position in zip(own.unit_lo.tolist(), own.unit_hi.tolist(), own.unit_first.tolist(), strict=True):
            candidates = own.candidates(lo)
            if len(candidates):
                yield UnitRoutes(sample.row, number, lo + shift, hi + shift, position, candidates, base)
        base += own.chunks if plan.packed else 0


def selection(
    plan: Plan,
    q: NDArray[Any],
    centroids: NDArray[Any],
    top_k: tuple[int, ...],
    key_lengths: NDArray[np.int32] | None = None,
) -> NDArray[np.int32]:
    """Return what routing must select, by scores in float64 rounded to float32; ties to the lower chunk."""
    heads, group = q.shape[2], q.shape[2] // centroids.shape[1]
    found = np.full((q.shape[0], heads, plan.q_tokens, plan.slots), -1, np.int32)
    for unit in units(plan, q.shape[0], key_lengths):
        for head in range(heads):
            query = q[unit.row, unit.lo : unit.hi, head].astype(np.float32).mean(axis=0).astype(np.float64)
            means = centroids[unit.row, head // group, unit.base + unit.candidates]
            scores = (means.astype(np.float64) @ query).astype(np.float32)
            rank = np.lexsort((-scores, ~np.isnan(scores)))[: top_k[head]]
            found[unit.row, head, unit.lo : unit.hi, : len(rank)] = np.sort(unit.candidates[rank])
    return found


def dropped(
    plan: Plan,
    selected: NDArray[np.int32],
    dropout: RouteDropout,
    seed: int,
    starts: tuple[int, int] = (0, 0),
    key_lengths: NDArray[np.int32] | None = None,
) -> NDArray[np.int32]:
    """Return what route dropout must make of a selection."""
    found = np.full_like(selected, -1)
    for unit in units(plan, selected.shape[0], key_lengths):
        for head in range(selected.shape[1]):
            routes = selected[unit.row, head, unit.lo]
            place = (starts[0] + unit.sample, starts[1] + head, unit.position)
            kept = oracle_random.drop(dropout, routes[routes >= 0].tolist(), unit.candidates.tolist(), place, seed)
            found[unit.row, head, unit.lo : unit.hi, : len(kept)] = kept
    return found
