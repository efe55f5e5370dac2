"""From plans and arrays to the arguments of the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends.numba import structs
from sparsemoc.backends.numba.config import NumbaConfig
from sparsemoc.backends.numba.forward import LOG2_E, attend_units
from sparsemoc.backends.numba.intrinsics import LOGIT_ROW, ROW, strip_rows, vector_bytes
from sparsemoc.backends.numba.memory import aligned, readable, writable
from sparsemoc.backends.numba.pack import mean_keys, pack_panels, pack_rows, panel_starts
from sparsemoc.backends.numba.products import address
from sparsemoc.backends.numba.threads import parallel
from sparsemoc.backends.protocol import Problem, lse_dtype
from sparsemoc.spec.plan import Sample
from sparsemoc.spec.sample_plan import SamplePlan

Floats = NDArray[Any]
#: Bytes of packed keys and values at a time, where the caller sets no limit.
WORKSPACE = 64 * 2**20


def lanes_of(dtype: Any) -> int:
    """Return how many elements a vector register holds."""
    return vector_bytes() // int(np.dtype(dtype).itemsize)


def padded(width: int, lanes: int) -> int:
    """Return a head_dim in whole vectors."""
    return -(-width // lanes) * lanes


def counter() -> NDArray[np.int64]:
    """Return the work counter of a launch."""
    return np.zeros(1, np.int64)


def key_panels(k: Floats, starts: Any, stops: Any, dtype: Any, threads: int) -> tuple[Floats, NDArray[np.int64]]:
    """Pack (tokens, heads, head_dim) to panels; return them as (heads, padded keys, depth) and their groups."""
    source, code = readable(k)
    lanes = lanes_of(dtype)
    bounds = np.concatenate([starts, [k.shape[0]]])
    groups = panel_starts(bounds, lanes)
    depth = padded(k.shape[2], lanes)
    panels = aligned((k.shape[1], int(groups[-1]) * lanes, depth), dtype)
    parallel(threads, lambda own: pack_panels(own, threads, panels, source, code, starts, stops, groups, lanes))
    return panels, groups


def value_rows(v: Floats, dtype: Any, threads: int) -> Floats:
    """Copy (tokens, heads, head_dim) to contiguous (heads, tokens, padded head_dim)."""
    source, code = readable(v)
    rows = aligned((v.shape[1], v.shape[0], padded(v.shape[2], lanes_of(dtype))), dtype)
    parallel(threads, lambda own: pack_rows(own, threads, rows, source, code))
    return rows


def part(array: Floats, sample: Sample, queries: bool) -> Floats:
    """Return a sample's (tokens, heads, head_dim) of a (batch, tokens, heads, head_dim) array."""
    first = sample.q_row if queries else sample.k_row
    count = sample.plan.q_tokens if queries else sample.plan.k_tokens
    return array[sample.row, first : first + count]


def sample_arrays(plan: SamplePlan) -> structs.Sample:
    """Return the plan's arrays as the attention kernels take them."""
    rectangles = plan.anchor_rectangles
    run_of = np.full(plan.q_tokens, -1, np.int32)
    for run, (lo, hi) in enumerate(zip(plan.run_lo, plan.run_hi, strict=True)):
        run_of[lo - plan.q_start : hi - plan.q_start] = run
    return structs.Sample(
        q_lo=rectangles.q_lo,
        q_hi=rectangles.q_hi,
        k_lo=rectangles.k_lo,
        k_hi=rectangles.k_hi,
        banded=rectangles.banded,
        anchor_ptr=plan.anchor_ptr,
        anchor_lo=plan.anchor_lo,
        anchor_hi=plan.anchor_hi,
        run_of=run_of,
        starts=plan.chunk_bounds,
        stops=plan.chunk_stop,
        reach=plan.reach,
        token_causal=plan.token_causal,
        splits_chunks=plan.splits_chunks,
        q_start=plan.q_start,
    )


def strip_buffer(row: int, dtype: Any) -> Floats:
    """Return a strip buffer, rows `row` elements apart, of zeros: what no kernel writes must not be NaN."""
    buffer = aligned((strip_rows() * row,), dtype)
    buffer[:] = 0
    return buffer


def forward_scratch(block: int, widths: tuple[int, int], chunks: int, slots: int, dtype: Any) -> tuple[Any, ...]:
    """Return a worker's scratch for the forward: loaded queries, state, strips, route lists, rows counted up."""
    state = structs.State(np.empty(block, dtype), np.empty(block, dtype), aligned((block, widths[1]), dtype))
    strips = structs.Strips(
        strip_buffer(ROW, dtype),
        strip_buffer(LOGIT_ROW, dtype),
        strip_buffer(ROW, dtype),
        aligned((32,), dtype),
        np.empty(32, dtype),
        address("key", dtype),
    )
    lists = (np.empty(chunks + 2, np.int64), np.empty(block * slots, np.int64))
    return (aligned((block, widths[0]), dtype), state, strips, *lists, np.arange(block))


def pool_sample(plan: SamplePlan, k: Floats, centroids: NDArray[np.float32], threads: int) -> None:
    """Write the mean keys of one sample to `centroids` (kv_heads, chunks, head_dim)."""
    source, code = readable(k)
    starts, stops = plan.chunk_bounds[:-1], plan.chunk_stop
    dtype = np.float64 if k.dtype == np.float64 else np.float32

    heads = k.shape[1] if k.strides[1] < k.strides[0] else 1

    def work(own: int) -> None:
        few, total = np.empty((heads, k.shape[2]), dtype), np.empty((heads, k.shape[2]), np.float64)
        row = np.empty((1, k.shape[2]), dtype)
        mean_keys(own, threads, centroids, few, total, row, source, code, starts, stops)

    parallel(threads, work)


def head_groups(kv_heads: int, bytes_per_head: int, most: int | None) -> list[slice]:
    """Return the key heads in groups whose packed arrays take at most `most` bytes, WORKSPACE for None.

    Memory of one group serves the next, which keeps the peak low and the pages warm.
    """
    size = max(1, min(kv_heads, (WORKSPACE if most is None else most) // max(bytes_per_head, 1)))
    return [slice(first, min(first + size, kv_heads)) for first in range(0, kv_heads, size)]


def packed_bytes(problem: Problem, backward: bool) -> int:
    """Return the bytes of one key head's packed keys and values, at most, of the forward or of the backward."""
    dtype = lse_dtype(problem.dtype)
    lanes = lanes_of(dtype)
    tokens = max(stream.tokens for stream in problem.plan.streams) + problem.plan.chunks * lanes
    depth, v_depth = padded(problem.head_dim, lanes), padded(problem.v_head_dim, lanes)
    widths = depth + v_depth
    if backward:
        widths = 3 * depth + 2 * v_depth + problem.group * depth
    return int(tokens * widths * dtype.itemsize)


def attend_sample(
    problem: Problem,
    plan: SamplePlan,
    qkv: tuple[Floats, Floats, Floats],
    selected: NDArray[np.int32],
    outputs: tuple[Floats, Floats],
    scale: float,
    config: NumbaConfig,
    threads: int,
) -> None:
    """Run the forward of one sample."""
    q, k, v = qkv
    out, lse = outputs
    shared, blocks = sample_arrays(plan), config.forward_blocks(problem.plan, plan.q_tokens, plan.chunks)
    dtype = lse.dtype
    sizes = (config.key_tile, address("row", dtype))
    for kv in head_groups(k.shape[1], packed_bytes(problem, False), problem.options.max_workspace):
        heads = slice(kv.start * problem.group, kv.stop * problem.group)
        panels, groups = key_panels(k[:, kv], plan.chunk_bounds[:-1], plan.chunk_stop, dtype, threads)
        values = value_rows(v[:, kv], dtype, threads)
        bits, code = readable(q[:, heads])
        inputs = (bits, code, panels, groups, values, selected[heads])
        targets = (writable(out[:, heads]), lse[heads])
        widths, units = (panels.shape[2], values.shape[2]), counter()

        def work(
            own: int, units: Any = units, inputs: Any = inputs, targets: Any = targets, widths: Any = widths
        ) -> None:
            block = int(np.diff(blocks).max())
            scratch = forward_scratch(block, widths, plan.chunks, selected.shape[2], dtype)
            attend_units(units, blocks, problem.group, inputs, targets, shared, scratch, sizes, scale * LOG2_E)

        parallel(min(threads, (heads.stop - heads.start) * (len(blocks) - 1)), work)
