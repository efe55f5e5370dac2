"""Gradients of attention on the host: tables, workspace, slices of a call."""

from __future__ import annotations

from sparsemoc.backends.cupy.config import CupyConfig
from sparsemoc.backends.cupy.forward import empty_rows
from sparsemoc.backends.cupy.grad_kernels import sum_width
from sparsemoc.backends.cupy.index import index
from sparsemoc.backends.cupy.launch_backward import Call, launch_key_grads, launch_query_grads, launch_rows
from sparsemoc.backends.cupy.shared import head_block
from sparsemoc.backends.cupy.tables import DeviceTables, device_key_tiles, device_query_tiles
from sparsemoc.backends.planning.ends import Ends
from sparsemoc.backends.planning.geometry import Geometry, geometry
from sparsemoc.backends.planning.key_tiles import KeySizes, Segments, key_tiles, segments
from sparsemoc.backends.planning.query_tiles import Sizes, query_tiles
from sparsemoc.backends.planning.workspace import Slice, slices
from sparsemoc.backends.protocol import Array, Problem


def attend_backward(
    problem: Problem,
    tables: DeviceTables,
    q: Array,
    k: Array,
    v: Array,
    selected: Array,
    ends: Ends,
    scale: float,
    out: Array,
    lse: Array,
    d_out: Array,
    d_lse: Array | None,
    config: CupyConfig,
    fault: Array,
) -> tuple[Array, Array, Array]:
    """Return dq, dk and dv, as q, k and v lie in memory; every sum in an order that nothing but the plan decides.

    Args:
        problem: the call.
        tables: of its plan, on the machine of the arrays.
        q, k, v: (batch, tokens, heads or kv_heads, head_dim or v_head_dim), any strides.
        selected: int32 (batch, heads, rows, slots).
        ends: where the valid tokens of chunks and segments end.
        scale: factor on the logits.
        out, lse: of the forward; lse float32 (batch, heads, rows), natural log, -inf where a row sees no key.
        d_out, d_lse: gradients of out and lse; d_lse may be None.
        config: the tile sizes.
        fault: the word that kernels report to.
    """
    machine = tables.machine
    dq, dk, dv = (empty_rows(machine, x, x.shape[3]) for x in (q, k, v))
    keys = device_key_tiles(tables, _key_sizes(config))
    queries = device_query_tiles(tables, _query_sizes(config), 0)
    split = segments(keys, tables.geometry, problem.group, _key_sizes(config))
    whole = Call(
        q, k, v, d_out, out, lse, d_lse, selected, dq, dk, dv, ends, scale, tables, keys, queries, split, config,
        problem.options.precision, fault,
    )  # fmt: skip
    need = workspace(problem, tables.geometry, split, queries.places, config)
    for part in slices(q.shape[0], k.shape[2], need, problem.options.max_workspace):
        _backward_slice(_cut(whole, part))
    return dq, dk, dv


def least_workspace(problem: Problem, config: CupyConfig) -> int:
    """Return the bytes of temporary memory that a call without padding needs at least."""
    tables, sizes = geometry(problem.plan, False), _key_sizes(config)
    split = segments(key_tiles(tables, sizes), tables, problem.group, sizes)
    return workspace(problem, tables, split, query_tiles(tables, _query_sizes(config)).places, config)


def workspace(problem: Problem, tables: Geometry, split: Segments, places: int, config: CupyConfig) -> int:
    """Return the bytes of temporary memory for one batch row and key head: row constants, lists, partial sums.

    Args:
        problem: the call.
        tables: of its plan.
        split: of the key tiles.
        places: `QueryTiles.places`.
        config: the tile sizes.
    """
    routes = tables.rows * tables.plan.slots
    sums = 4 * (places + routes) * sum_width(problem.head_dim)
    of_rows = problem.group * (8 * tables.rows + sums + 4 * routes + 12 * tables.chunks)
    return of_rows + 4 * split.parts * config.grad_keys * sum(map(head_block, (problem.head_dim, problem.v_head_dim)))


def _key_sizes(config: CupyConfig) -> KeySizes:
    return KeySizes(config.grad_keys, config.grad_rows, config.grad_segment, config.grad_parts)


def _query_sizes(config: CupyConfig) -> Sizes:
    return Sizes(config.grad_query_rows, config.grad_query_keys, config.anchor_split, False)


def _cut(call: Call, part: Slice) -> Call:
    """Return the part of a call that belongs to a slice."""
    rows = {name: part.heads(getattr(call, name), 2) for name in ("q", "d_out", "out", "dq")}
    keys = {name: part.kv_heads(getattr(call, name), 2) for name in ("k", "v", "dk", "dv")}
    return call._replace(
        lse=part.heads(call.lse, 1),
        d_lse=None if call.d_lse is None else part.heads(call.d_lse, 1),
        selected=call.machine.contiguous(part.heads(call.selected, 1)),
        ends=call.ends.of(part),
        **rows,
        **keys,
    )


def _backward_slice(call: Call) -> None:
    """Write dq, dk and dv of a slice."""
    rows = launch_rows(call)
    lists = index(call.tables, call.selected, call.config, call.fault)
    launch_key_grads(call, rows, lists)
    launch_query_grads(call, rows, lists)
