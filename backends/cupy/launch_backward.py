"""Launches of the kernels of the backward: from arrays and tables to their arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

from sparsemoc.backends.cupy.config import CupyConfig
from sparsemoc.backends.cupy.grad_kernels import (
    JOIN_THREADS,
    SUMS,
    dim_parts,
    join_kernel,
    key_grads_kernel,
    query_grads_kernel,
    rows_kernel,
    rows_of_block,
    sum_width,
)
from sparsemoc.backends.cupy.index import Index, split_ptr
from sparsemoc.backends.cupy.machine import Machine, layouts_of, strides_of
from sparsemoc.backends.cupy.pair_kernels import LOG2_E
from sparsemoc.backends.cupy.shared import head_block
from sparsemoc.backends.cupy.tables import DeviceTables
from sparsemoc.backends.planning.ends import Ends
from sparsemoc.backends.planning.key_tiles import KeyTiles, Segments
from sparsemoc.backends.planning.query_tiles import QueryTiles
from sparsemoc.backends.protocol import Array

#: log2 of the factor on float16 weights, see slopes.cuh.
LIFT = 12.0
#: The tables of `KeyTiles` that the kernel reads, by the names of its arguments.
_KEY_TILES = (
    "tile_lo", "tile_hi", "tile_chunk", "meeting_ptr", "row_lo", "row_full", "row_hi", "key_lo", "key_hi", "banded",
)  # fmt: skip


class Call(NamedTuple):
    """One slice of a call: what every launch needs.

    Attributes:
        q, k, v, d_out: (batch, tokens, heads or kv_heads, head_dim or v_head_dim), any strides.
        out: like d_out, of the forward.
        lse, d_lse: float32 (batch, heads, rows), any strides; d_lse may be None.
        selected: int32 (batch, heads, rows, slots), contiguous.
        dq, dk, dv: what is written to.
        ends: where valid tokens end.
        scale: factor on the logits.
        tables, key_tiles, query_tiles: of the plan.
        segments: how the work of key tiles is split.
        config, precision: tile sizes; of float32 products.
        fault: the word that kernels report to.
    """

    q: Array
    k: Array
    v: Array
    d_out: Array
    out: Array
    lse: Array
    d_lse: Array | None
    selected: Array
    dq: Array
    dk: Array
    dv: Array
    ends: Ends
    scale: float
    tables: DeviceTables
    key_tiles: KeyTiles
    query_tiles: QueryTiles
    segments: Segments
    config: CupyConfig
    precision: str
    fault: Array

    @property
    def machine(self) -> Machine:
        """Where the arrays are."""
        return self.tables.machine

    @property
    def lanes(self) -> tuple[int, int]:
        """Heads and batch rows: the outer axes of the grids over rows."""
        return self.q.shape[2], self.q.shape[0]

    @property
    def dtype(self) -> str:
        """Of q, k and v."""
        return self.machine.dtype(self.q)

    @property
    def dims(self) -> tuple[int, int]:
        """head_dim and v_head_dim."""
        return self.q.shape[3], self.v.shape[3]

    @property
    def group(self) -> int:
        """Query heads to a key head."""
        return int(self.q.shape[2] // self.k.shape[2])

    @property
    def lift(self) -> float:
        """log2 of the factor that weights and slopes carry."""
        return LIFT if self.dtype == "float16" else 0.0


class Rows(NamedTuple):
    """What rows.cu makes of the rows: float32 (batch, heads, rows)."""

    shift: Array
    delta: Array


def launch_rows(call: Call) -> Rows:
    """Return the constants of the rows; see rows.cu."""
    (heads, batch), machine, count = call.lanes, call.machine, call.q.shape[1]
    rows = Rows(*(machine.empty((batch, heads, count), "float32") for _ in range(2)))
    arrays = {"q": call.q, "r": call.out, "o": call.d_out}
    d_lse = call.lse if call.d_lse is None else call.d_lse
    machine.launch(
        rows_kernel(call.dtype, *call.dims), (-(-count // rows_of_block(*call.dims)), heads, batch),
        q=call.q, out=call.out, d_out=call.d_out, lse=call.lse, d_lse=call.d_lse, **rows._asdict(),
        **layouts_of(machine, arrays), **strides_of(machine, "l", call.lse, "bhl"),
        **strides_of(machine, "g", d_lse, "bhl"), head_dim=call.dims[0], v_head_dim=call.dims[1], rows=count,
        lift=call.lift,
    )  # fmt: skip
    return rows


def launch_key_grads(call: Call, rows: Rows, lists: Index) -> None:
    """Write dk and dv; see key_grads.cu."""
    tiles, split, machine, config = call.key_tiles, call.segments, call.machine, call.config
    batch, _, kv_heads, _ = call.k.shape
    if split.parts:
        before = split_ptr(tiles, split, lists, call.group, config.grad_rows)
    else:
        before = machine.zeros((batch, kv_heads, tiles.count + 1), "int32")
    shape = (batch, kv_heads, split.parts, config.grad_keys)
    sums = [machine.empty((*shape, head_block(dim)), "float32") for dim in call.dims]
    factors = (call.scale * 2.0**-call.lift, 2.0**-call.lift)
    targets = {"dk": call.dk, "dv": call.dv}
    machine.launch(
        key_grads_kernel(call.dtype, *call.dims, call.precision, config),
        ((split.parts + tiles.count) * dim_parts(*call.dims), kv_heads, batch),
        **{name: getattr(tiles, name) for name in _KEY_TILES}, **targets, dk_parts=sums[0], dv_parts=sums[1],
        split_ptr=before, **layouts_of(machine, targets), key_tiles=tiles.count,
        parts=split.parts, segment=split.segment, causal=int(call.tables.geometry.token_causal),
        dk_factor=factors[0], dv_factor=factors[1], **_shared(call, rows), **_routes(call, lists),
    )  # fmt: skip
    for parts, target, factor in zip(sums, targets.values(), factors, strict=True):
        if split.parts:
            _launch_join(call, parts, target, before, factor)


def _launch_join(call: Call, parts: Array, target: Array, before: Array, factor: float) -> None:
    """Add the sums of split key tiles; see joins.cu."""
    tiles, machine = call.key_tiles, call.machine
    batch, kv_heads, count, block_keys, block = parts.shape
    strides = {f"stride_{axis}": step for axis, step in zip("blhd", machine.strides(target), strict=True)}
    machine.launch(
        join_kernel("join_segments", call.dtype), (count, kv_heads, batch),
        sums=parts, target=target, split_ptr=before, tile_lo=tiles.tile_lo, tile_hi=tiles.tile_hi, **strides,
        key_tiles=tiles.count, parts=count, block_keys=block_keys, block=block, width=target.shape[3], factor=factor,
    )  # fmt: skip


def launch_query_grads(call: Call, rows: Rows, lists: Index) -> None:
    """Write dq; see query_grads.cu and joins.cu."""
    tiles, machine, (heads, batch), slots = call.query_tiles, call.machine, call.lanes, call.selected.shape[3]
    count, width = call.q.shape[1], sum_width(call.dims[0])
    anchored, routed = (
        machine.empty((batch, heads, places, width), "float32") for places in (tiles.places, count * slots)
    )
    if tiles.items.shape[0]:
        _launch_anchor_query_grads(call, rows, anchored)
    if slots:
        _launch_routed_query_grads(call, rows, lists, routed)
    pieces = -(-call.config.grad_query_rows * width // (SUMS * JOIN_THREADS))
    strides = {f"stride_{axis}": step for axis, step in zip("blhd", machine.strides(call.dq), strict=True)}
    machine.launch(
        join_kernel("join_query_grads", call.dtype), (tiles.tiles.shape[0] * pieces, heads, batch),
        tiles=tiles.tiles, parts=tiles.parts, anchor_parts=anchored, routed_parts=routed, selected=call.selected,
        run_of_row=call.tables.run_of_row, run_base=call.tables.runs.run_base, run_stop=call.tables.run_stop,
        dq=call.dq, **strides, pieces=pieces, rows=count, anchor_places=tiles.places, slots=slots,
        chunks=call.tables.geometry.chunks, width=width, head_dim=call.dims[0],
        factor=call.scale * 2.0**-call.lift,
    )  # fmt: skip


def _launch_anchor_query_grads(call: Call, rows: Rows, parts: Array) -> None:
    """Write the partial sums of the anchors."""
    tiles = call.query_tiles
    call.machine.launch(
        query_grads_kernel("anchor_query_grads", call.dtype, *call.dims, call.precision, call.config),
        (tiles.items.shape[0], *call.lanes),
        items=tiles.items, entries=tiles.entries, ends=call.ends.ends if call.ends.padded else None, dq_parts=parts,
        stride_ends=call.ends.segment_stride, width=parts.shape[3], places=tiles.places,
        causal=int(call.tables.geometry.token_causal), **_shared(call, rows),
    )  # fmt: skip


def _launch_routed_query_grads(call: Call, rows: Rows, lists: Index, parts: Array) -> None:
    """Write the partial sums of the routes."""
    config, chunks, places = call.config, call.tables.geometry.chunks, parts.shape[2]
    call.machine.launch(
        query_grads_kernel("routed_query_grads", call.dtype, *call.dims, call.precision, config),
        (places // config.grad_query_rows + min(chunks, places), *call.lanes),
        tile_ptr=lists.tile_ptr(config.grad_query_rows), chunk_lo=call.tables.keys.chunk_lo, dq_parts=parts,
        width=parts.shape[3], **_shared(call, rows), **_routes(call, lists),
    )  # fmt: skip


def _shared(call: Call, rows: Rows) -> dict[str, Any]:
    """Return the arguments that the kernels of pairs share."""
    geometry, arrays = call.tables.geometry, {"q": call.q, "k": call.k, "v": call.v, "o": call.d_out}
    return {
        "q": call.q, "k": call.k, "v": call.v, "d_out": call.d_out, **rows._asdict(),
        **layouts_of(call.machine, arrays), "head_dim": call.dims[0],
        "v_head_dim": call.dims[1], "group": call.group, "rows": call.q.shape[1], "q_start": geometry.q_start,
        "reach": min(geometry.reach, geometry.plan.k_tokens), "scale": call.scale * LOG2_E, "lift": call.lift,
    }  # fmt: skip


def _routes(call: Call, lists: Index) -> dict[str, Any]:
    """Return the arguments that the kernels of routed pairs share."""
    geometry, runs, slots = call.tables.geometry, call.tables.runs, call.selected.shape[3]
    return {
        "entries": lists.entries, "ptr": lists.ptr, "places": call.q.shape[1] * slots, "slots": max(slots, 1),
        "chunks": geometry.chunks, "stops": call.ends.stops, "stride_stops": call.ends.stride,
        "run_of_row": runs.run_of_row, "anchor_ptr": runs.anchor_ptr, "anchor_lo": runs.anchor_lo,
        "anchor_hi": runs.anchor_hi, "splits": int(geometry.splits_chunks),
    }  # fmt: skip
