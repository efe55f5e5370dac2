"""Attention over anchors and routes on the host: tables, workspace, slices of a call."""

from __future__ import annotations

from sparsemoc.backends.cupy.config import CupyConfig
from sparsemoc.backends.cupy.launch_forward import (
    Call,
    Partials,
    launch_anchors,
    launch_merge,
    launch_routed,
    shares_routes,
)
from sparsemoc.backends.cupy.machine import Machine
from sparsemoc.backends.cupy.pair_kernels import LOG2_E, SIZES, vector_width
from sparsemoc.backends.cupy.tables import DeviceTables, device_query_tiles
from sparsemoc.backends.planning.ends import Ends
from sparsemoc.backends.planning.geometry import Geometry, geometry
from sparsemoc.backends.planning.query_tiles import Sizes, query_tiles
from sparsemoc.backends.planning.workspace import Slice, slices
from sparsemoc.backends.protocol import Array, Problem


def attend(
    problem: Problem,
    tables: DeviceTables,
    q: Array,
    k: Array,
    v: Array,
    selected: Array,
    ends: Ends,
    scale: float,
    config: CupyConfig,
    fault: Array,
) -> tuple[Array, Array]:
    """Return out (batch, rows, heads, v_head_dim), as q lies in memory, and lse (batch, heads, rows), natural log.

    Args:
        problem: the call.
        tables: of its plan, on the machine of the arrays.
        q, k, v: (batch, tokens, heads or kv_heads, head_dim or v_head_dim), any strides.
        selected: int32 (batch, heads, rows, slots).
        ends: where the valid tokens of chunks and segments end.
        scale: factor on the logits.
        config: the tile sizes.
        fault: the word that kernels report to.
    """
    machine = tables.machine
    tiles = device_query_tiles(tables, _sizes(tables.geometry, config), 0)
    out = empty_rows(machine, q, v.shape[3])
    lse = machine.empty((q.shape[0], q.shape[2], q.shape[1]), "float32")
    if scale < 0:
        q, scale = -q, -scale
    whole = Call(
        q, k, v, machine.contiguous(selected), ends, scale * LOG2_E, tables, tiles, config, problem.options.precision,
        fault,
    )  # fmt: skip
    need = workspace(problem, tables.geometry, tiles.places, config)
    for part in slices(q.shape[0], k.shape[2], need, problem.options.max_workspace):
        _attend_slice(_cut(whole, part), part.heads(out, 2), part.heads(lse, 1))
    return out, lse


def workspace(problem: Problem, geometry: Geometry, places: int, config: CupyConfig) -> int:
    """Return the bytes of temporary memory for one batch row and key head: partial outputs and the chunk-major lists.

    Args:
        problem: the call.
        geometry: the tables of its plan.
        places: `QueryTiles.places`.
        config: the tile sizes.
    """
    routed = 0 if shares_routes(geometry, config) else geometry.rows * geometry.plan.slots
    width = vector_width(problem.v_head_dim, problem.dtype) * SIZES[problem.dtype]
    return problem.group * ((places + routed) * (width + 4) + 4 * routed + 12 * geometry.chunks)


def least_workspace(problem: Problem, config: CupyConfig) -> int:
    """Return the bytes of temporary memory that a call without padding needs at least."""
    tables = geometry(problem.plan, False)
    return workspace(problem, tables, query_tiles(tables, _sizes(tables, config)).places, config)


def _sizes(tables: Geometry, config: CupyConfig) -> Sizes:
    return Sizes(config.anchor_rows, config.anchor_keys, config.anchor_split, shares_routes(tables, config))


def _cut(call: Call, part: Slice) -> Call:
    """Return the part of a call that belongs to a slice."""
    return call._replace(
        q=part.heads(call.q, 2),
        k=part.kv_heads(call.k, 2),
        v=part.kv_heads(call.v, 2),
        selected=call.machine.contiguous(part.heads(call.selected, 1)),
        ends=call.ends.of(part),
    )


def _attend_slice(call: Call, out: Array, lse: Array) -> None:
    """Write out and lse of a slice."""
    anchored = _partials(call, call.tiles.places)
    if call.tiles.items.shape[0]:
        launch_anchors(call, anchored)
    slots = 0 if shares_routes(call.tables.geometry, call.config) else call.selected.shape[3]
    routed = _partials(call, call.q.shape[1] * slots)
    if slots:
        launch_routed(call, routed)
    launch_merge(call, anchored, routed, slots, out, lse)


def _partials(call: Call, places: int) -> Partials:
    (heads, batch), machine = call.lanes, call.machine
    out = machine.empty((batch, heads, places, call.width), call.dtype)
    return Partials(out, machine.empty((batch, heads, places), "float32"))


def empty_rows(machine: Machine, like: Array, width: int) -> Array:
    """Return a new (batch, tokens, heads, width) array whose outer axes lie in memory in the order of `like`'s."""
    steps = machine.strides(like)
    order = sorted(range(3), key=lambda axis: -steps[axis])
    made = machine.empty((*(like.shape[axis] for axis in order), width), machine.dtype(like))
    return machine.transpose(made, (*(order.index(axis) for axis in range(3)), 3))
