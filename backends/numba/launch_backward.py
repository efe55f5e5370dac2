"""From plans and arrays to the arguments of the backward's kernels."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends.numba import structs
from sparsemoc.backends.numba.backward import gradient_units, index_routes, row_constants, store_rows
from sparsemoc.backends.numba.config import NumbaConfig, even_blocks
from sparsemoc.backends.numba.forward import LOG2_E
from sparsemoc.backends.numba.intrinsics import LOGIT_ROW, ROW
from sparsemoc.backends.numba.launch import (
    Floats,
    counter,
    head_groups,
    key_panels,
    packed_bytes,
    sample_arrays,
    strip_buffer,
    value_rows,
)
from sparsemoc.backends.numba.memory import aligned, readable, writable
from sparsemoc.backends.numba.products import address
from sparsemoc.backends.numba.threads import parallel
from sparsemoc.backends.protocol import Problem
from sparsemoc.spec.sample_plan import SamplePlan


def backward_sample(
    problem: Problem,
    plan: SamplePlan,
    qkv: tuple[Floats, Floats, Floats],
    selected: NDArray[np.int32],
    result: tuple[Floats, Floats],
    d_result: tuple[Floats, Floats],
    outputs: tuple[Floats, Floats, Floats],
    scale: float,
    config: NumbaConfig,
    threads: int,
) -> None:
    """Run the backward of one sample: `result` and `d_result` are out and lse and their gradients."""
    for kv in head_groups(qkv[1].shape[1], packed_bytes(problem, True), problem.options.max_workspace):
        own = slice(kv.start * problem.group, kv.stop * problem.group)
        _head_group(
            problem,
            plan,
            (qkv[0][:, own], qkv[1][:, kv], qkv[2][:, kv]),
            selected[own],
            (result[0][:, own], result[1][own]),
            (d_result[0][:, own], d_result[1][own]),
            (outputs[0][:, own], outputs[1][:, kv], outputs[2][:, kv]),
            scale,
            config,
            threads,
        )


def _head_group(
    problem: Problem,
    plan: SamplePlan,
    qkv: tuple[Floats, Floats, Floats],
    selected: NDArray[np.int32],
    result: tuple[Floats, Floats],
    d_result: tuple[Floats, Floats],
    outputs: tuple[Floats, Floats, Floats],
    scale: float,
    config: NumbaConfig,
    threads: int,
) -> None:
    """Run the backward of some of the key heads and their query heads."""
    q, k, v = qkv
    dtype = result[1].dtype
    blocks = even_blocks(plan.q_tokens, config.grad_block)
    chunk_blocks = _chunk_blocks(plan, config.grad_block)
    packed, depths = _packed(plan, k, v, dtype, threads)
    constants = _constants(result, d_result, dtype, threads)
    routes = _routes(selected, blocks, plan.chunks, threads)
    grads = (
        np.zeros((q.shape[1], q.shape[0], depths[0]), dtype),
        np.zeros((k.shape[1], k.shape[0], depths[0]), dtype),
        np.zeros((v.shape[1], v.shape[0], depths[1]), dtype),
    )
    bits, code = readable(q)
    inputs = (bits, readable(d_result[0])[0], code, scale * LOG2_E)
    shared, sizes = sample_arrays(plan), (config.grad_rows, config.grad_keys)
    scratch = [_scratch(config, int(np.diff(blocks).max()), dtype) for _ in range(threads)]
    for phase in range(max(len(blocks), len(chunk_blocks)) - 1):
        units = counter()
        arguments = (
            units,
            phase,
            blocks,
            chunk_blocks,
            problem.group,
            inputs,
            packed,
            routes,
            constants,
            shared,
            grads,
        )
        parallel(threads, partial(_phase, arguments, scratch, sizes))
    # The queries were loaded times scale * log2(e): dk holds the log2(e) too much, dq lacks the scale.
    for target, grad, factor in zip(outputs, grads, (scale, 1 / LOG2_E, 1.0), strict=True):
        parallel(threads, partial(_store, threads, (writable(target), grad, code, factor)))


def _phase(arguments: tuple[Any, ...], scratch: list[Any], sizes: tuple[int, int], own: int) -> None:
    gradient_units(*arguments, scratch[own], sizes)


def _store(threads: int, arguments: tuple[Any, ...], own: int) -> None:
    store_rows(own, threads, *arguments)


def _chunk_blocks(plan: SamplePlan, size: int) -> NDArray[np.int64]:
    """Return the chunks at which key blocks of about `size` keys begin, and the number of chunks."""
    cuts = np.arange(0, plan.k_tokens, size)
    firsts = np.unique(np.searchsorted(plan.chunk_bounds[:-1], cuts, side="left"))
    return np.append(firsts[firsts < plan.chunks], plan.chunks).astype(np.int64)


def _packed(plan: SamplePlan, k: Floats, v: Floats, dtype: Any, threads: int) -> tuple[Any, tuple[int, int]]:
    starts, stops = plan.chunk_bounds[:-1], plan.chunk_stop
    keys, key_groups = key_panels(k, starts, stops, dtype, threads)
    values, value_groups = key_panels(v, starts, stops, dtype, threads)
    products = (address("key", dtype), address("query", dtype), address("row", dtype))
    rows = value_rows(k, dtype, threads)
    packed = (keys, key_groups, values, value_groups, rows, products)
    return packed, (keys.shape[2], values.shape[2])


def _constants(
    result: tuple[Floats, Floats], d_result: tuple[Floats, Floats], dtype: Any, threads: int
) -> tuple[Floats, Floats]:
    shift, delta = np.empty(result[1].shape, dtype), np.empty(result[1].shape, dtype)
    (out, code), (d_out, _) = readable(result[0]), readable(d_result[0])
    lse, d_lse = np.ascontiguousarray(result[1]), np.ascontiguousarray(d_result[1])
    parallel(threads, lambda own: row_constants(own, threads, out, d_out, code, lse, d_lse, shift, delta))
    return shift, delta


def _routes(selected: NDArray[np.int32], blocks: NDArray[np.int64], chunks: int, threads: int) -> tuple[Any, ...]:
    heads, queries, slots = selected.shape
    counts = np.zeros((heads, len(blocks) - 1, chunks + 2), np.int64)
    chosen = np.empty((heads, queries * slots), np.int64)
    if slots > 0:
        whole = np.ascontiguousarray(selected)
        parallel(threads, lambda own: index_routes(own, threads, whole, blocks, counts, chosen))
    return counts, chosen, slots


def _scratch(config: NumbaConfig, block: int, dtype: Any) -> tuple[structs.Tile, NDArray[np.int64]]:
    """Return a worker's tile, and the rows of a block counted up."""

    def buffer(row: int) -> Floats:
        rows = aligned((config.grad_rows * row,), dtype)
        rows[:] = 0
        return rows

    tile = structs.Tile(buffer(ROW), buffer(ROW), buffer(LOGIT_ROW), buffer(LOGIT_ROW), strip_buffer(ROW, dtype))
    return tile, np.arange(block)
