"""The step that turns routes by query into routes by chunk, as each backend does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.micro.ready import Ready, Step

Table = NDArray[np.int64]


class Index(NamedTuple):
    """An index, made by a step.

    Attributes:
        step: makes it.
        blocks: bounds of the blocks of queries that are sorted apart.
        entries: its result as (routes, 4): head, block, chunk, query.
    """

    step: Step
    blocks: Table
    entries: Callable[[Any], Table]


def _reference(ready: Ready) -> Index:
    """Transpose the layout in NumPy: the form that every backend's index has."""

    def entries(found: Any) -> Table:
        heads, width = found.ptr.shape[1:]
        ends = np.diff(found.ptr[0], axis=1)
        head = np.repeat(np.arange(heads), ends.sum(1))
        chunk = np.repeat(np.tile(np.arange(width - 1), heads), ends.reshape(-1))
        return np.stack([head, np.zeros_like(head), chunk, found.query], 1)

    step = ready.step("attend", lambda problem, config: ready.layout.chunk_major())
    return Index(step, np.array([0, ready.named.queries]), entries)


def _numba(ready: Ready, backward: bool) -> Index:
    """Sort the routes of each (head, block of queries), the blocks of a pass as its config cuts them."""
    from sparsemoc.backends.numba.backward import index_routes
    from sparsemoc.backends.numba.config import even_blocks
    from sparsemoc.backends.numba.threads import parallel, workers

    plan, selected = ready.named.plan(), np.ascontiguousarray(ready.given.selected[0])
    heads, queries, slots = selected.shape

    def blocks_of(config: Any) -> Table:
        passes = (even_blocks(queries, config.grad_block), config.forward_blocks(plan, queries, plan.chunks))
        return passes[0] if backward else passes[1]

    def call(problem: Any, config: Any) -> Any:
        blocks = blocks_of(config)
        counts = np.zeros((heads, len(blocks) - 1, plan.chunks + 2), np.int64)
        chosen = np.empty((heads, queries * slots), np.int64)
        with workers() as threads:
            parallel(threads, lambda own: index_routes(own, threads, selected, blocks, counts, chosen))
        return counts, chosen

    step = ready.step("attend_backward" if backward else "attend", call)
    blocks = blocks_of(step.config)

    def entries(found: Any) -> Table:
        counts, chosen = found
        rows = [
            (head, block, chunk, blocks[block] + query)
            for head in range(heads)
            for block in range(len(blocks) - 1)
            for chunk in range(plan.chunks)
            for query in chosen[head, blocks[block] * slots :][
                counts[head, block, chunk] : counts[head, block, chunk + 1]
            ]
        ]
        return np.array(rows, np.int64).reshape(-1, 4)

    return Index(step, blocks, entries)


def _triton(ready: Ready) -> Index:
    """Count and place by the two kernels."""
    from sparsemoc.backends.triton import routing
    from sparsemoc.backends.triton.device import device_tables

    selected = ready.layout.selected.contiguous()
    tables = device_tables(ready.named.plan(), False, selected.device)
    return _chunk_major(ready, ready.step("attend", lambda problem, config: routing.index(tables, selected, config)))


def _cupy(ready: Ready) -> Index:
    """Count, scan and place by the three kernels."""
    from sparsemoc.backends.cupy.index import index
    from sparsemoc.backends.cupy.machine import machine_of
    from sparsemoc.backends.cupy.tables import device_tables

    machine = machine_of(ready.layout.selected)
    selected = machine.contiguous(ready.layout.selected)
    tables = device_tables(ready.named.plan(), False, machine)
    return _chunk_major(ready, ready.step("attend", lambda problem, config: index(tables, selected, config, None)))


def _chunk_major(ready: Ready, step: Step) -> Index:
    """Return a step that gives `ptr` and `entries`, row * slots + slot by chunk, of all queries at once."""
    slots = ready.named.plan().slots

    def entries(found: Any) -> Table:
        ptr, places = ready.take(found.ptr)[0], ready.take(found.entries)[0]
        heads, width = ptr.shape
        rows = [
            (head, 0, chunk, place // slots)
            for head in range(heads)
            for chunk in range(width - 1)
            for place in places[head, ptr[head, chunk] : ptr[head, chunk + 1]].tolist()
        ]
        return np.array(rows, np.int64).reshape(-1, 4)

    return Index(step, np.array([0, ready.named.queries]), entries)


#: By backend, and by what the index is for: one that serves both passes stands under "index".
INDEXES: dict[str, dict[str, Callable[[Ready], Index]]] = {
    "reference": {"index": _reference},
    "numba": {
        "index": lambda ready: _numba(ready, backward=True),
        "index_forward": lambda ready: _numba(ready, backward=False),
    },
    "triton": {"index": _triton},
    "cupy": {"index": _cupy},
}
