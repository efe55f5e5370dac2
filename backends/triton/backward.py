"""Gradients of attention on the host: tables, workspace, slices of a call."""

from __future__ import annotations

from typing import Any

from sparsemoc.backends.planning.ends import Ends
from sparsemoc.backends.planning.geometry import Geometry, geometry
from sparsemoc.backends.planning.key_tiles import KeySizes, Segments, key_tiles, segments
from sparsemoc.backends.planning.query_tiles import QueryTiles, Sizes, query_tiles
from sparsemoc.backends.planning.workspace import Slice, slices
from sparsemoc.backends.protocol import Problem
from sparsemoc.backends.triton import routing
from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.backends.triton.device import DeviceTables, device_key_tiles, device_tiles
from sparsemoc.backends.triton.launch_backward import Call, blocks, launch_grads, launch_query_grads, launch_rows
from sparsemoc.backends.triton.library import library_of
from sparsemoc.backends.triton.workspace import empty_rows


def attend_backward(
    problem: Problem,
    tables: DeviceTables,
    q: Any,
    k: Any,
    v: Any,
    selected: Any,
    ends: Ends,
    scale: float,
    out: Any,
    lse: Any,
    d_out: Any,
    d_lse: Any,
    config: TritonConfig,
) -> tuple[Any, Any, Any]:
    """Return dq, dk and dv, as q, k and v lie in memory.

    Args:
        problem: the call.
        tables: of its plan, on the device of the arrays.
        q, k, v: (batch, tokens, heads or kv_heads, head_dim or v_head_dim), any strides.
        selected: int32 (batch, heads, rows, slots).
        ends: where the valid tokens of chunks and segments end.
        scale: factor on the logits.
        out, lse: of the forward; lse float32 (batch, heads, rows), natural log, -inf where a row sees no key.
        d_out, d_lse: gradients of out and lse; d_lse may be None.
        config: the tile sizes.
    """
    dq, dk, dv = (empty_rows(x, x.shape[3]) for x in (q, k, v))
    keys = device_key_tiles(tables, key_sizes(config))
    queries = None if _atomic(problem, config) else device_tiles(tables, _sizes(config), 0)
    split = segments(keys, tables.geometry, problem.group, key_sizes(config))
    whole = Call(
        q, k, v, d_out, out, lse, d_lse, selected, dq, dk, dv, ends, scale, tables, keys, queries, split, config,
        problem.options.precision,
    )  # fmt: skip
    need = workspace(problem, tables.geometry, split, queries, config)
    for part in slices(q.shape[0], k.shape[2], need, problem.options.max_workspace):
        _backward_slice(_cut(whole, part))
    return dq, dk, dv


def least_workspace(problem: Problem, config: TritonConfig) -> int:
    """Return the bytes of temporary memory that a call without padding needs at least."""
    tables = geometry(problem.plan, False)
    sizes = key_sizes(config)
    split = segments(key_tiles(tables, sizes), tables, problem.group, sizes)
    queries = None if _atomic(problem, config) else query_tiles(tables, _sizes(config))
    return workspace(problem, tables, split, queries, config)


def workspace(
    problem: Problem, tables: Geometry, split: Segments, queries: QueryTiles | None, config: TritonConfig
) -> int:
    """Return the bytes of temporary memory for one batch row and key head: row constants, lists, partial sums.

    Args:
        problem: the call.
        tables: of its plan.
        split: of the key tiles.
        queries: query tiles where dq has a fixed order, else None.
        config: the tile sizes.
    """
    routes = tables.rows * tables.plan.slots
    sums = tables.rows if queries is None else queries.places + routes
    of_rows = problem.group * (8 * tables.rows + 4 * sums * problem.head_dim + 4 * routes + 12 * tables.chunks)
    return of_rows + 4 * split.parts * config.grad_keys * sum(blocks(problem.head_dim, problem.v_head_dim))


def _atomic(problem: Problem, config: TritonConfig) -> bool:
    """Return whether dq is summed by atomic additions, in no fixed order."""
    return config.grad_atomic and not problem.deterministic


def key_sizes(config: TritonConfig) -> KeySizes:
    """Return what decides the tiles of keys."""
    return KeySizes(config.grad_keys, config.grad_rows, config.grad_segment, config.grad_parts)


def _sizes(config: TritonConfig) -> Sizes:
    return Sizes(config.grad_query_rows, config.grad_query_keys, config.anchor_split, False)


def _cut(call: Call, part: Slice) -> Call:
    """Return the part of a call that belongs to a slice."""
    rows = {name: part.heads(getattr(call, name), 2) for name in ("q", "d_out", "out", "dq")}
    keys = {name: part.kv_heads(getattr(call, name), 2) for name in ("k", "v", "dk", "dv")}
    lists = {name: part.heads(getattr(call, name), 1) for name in ("lse", "selected")}
    d_lse = None if call.d_lse is None else part.heads(call.d_lse, 1)
    return call._replace(ends=call.ends.of(part), d_lse=d_lse, **rows, **keys, **lists)


def _backward_slice(call: Call) -> None:
    """Write dq, dk and dv of a slice."""
    rows = launch_rows(call)
    index = routing.index(call.tables, call.selected.contiguous(), call.config)
    heads, batch = call.lanes
    shape, library = (batch, heads, *call.q.shape[1::2]), library_of(call.q)
    dq_sum = None if call.query_tiles else library.zeros(shape, dtype=library.float32, device=call.q.device)
    launch_grads(call, rows, index, dq_sum)
    factor = call.scale * 2.0**-call.lift
    if dq_sum is None:
        launch_query_grads(call, rows, index, factor)
    else:
        library.mul(dq_sum.transpose(1, 2), factor, out=call.dq)
