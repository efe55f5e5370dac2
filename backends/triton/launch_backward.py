"""Launches of the kernels of the backward: from arrays and tables to their arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

from sparsemoc.backends.planning.ends import Ends
from sparsemoc.backends.planning.geometry import Geometry
from sparsemoc.backends.planning.key_tiles import KeyTiles, Segments
from sparsemoc.backends.planning.query_tiles import QueryTiles
from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.backends.triton.device import DeviceTables
from sparsemoc.backends.triton.forward import shape_constants
from sparsemoc.backends.triton.kernels.coverage import FAR
from sparsemoc.backends.triton.kernels.delta import row_constants
from sparsemoc.backends.triton.kernels.grads import grads, join_segments
from sparsemoc.backends.triton.kernels.query_grads import anchor_query_grads, join_query_grads, routed_query_grads
from sparsemoc.backends.triton.library import kernel_on, library_of, starts
from sparsemoc.backends.triton.routing import Index
from sparsemoc.backends.triton.workspace import LOG2_E

#: Launch options of the kernels that only load and add.
DEFAULT_WARPS, DEFAULT_STAGES = 4, 2
#: log2 of the factor on float16 weights, see `kernels/slopes.py`.
LIFT = 12.0
#: The tables of `KeyTiles` that the kernel reads, by the names of its arguments.
KEY_TILES = (
    "tile_lo", "tile_hi", "tile_chunk", "meeting_ptr", "row_lo", "row_full", "row_hi", "key_lo", "key_hi", "banded",
)  # fmt: skip


class Call(NamedTuple):
    """One slice of a call: what every launch needs.

    Attributes:
        q, k, v, d_out: (batch, tokens, heads or kv_heads, head_dim or v_head_dim), any strides.
        out: like d_out, of the forward.
        lse, d_lse: (batch, heads, rows), any strides; d_lse may be None.
        selected: int32 (batch, heads, rows, slots).
        dq, dk, dv: what is written to.
        ends: where valid tokens end.
        scale: factor on the logits.
        tables, key_tiles, query_tiles: of the plan; query tiles where dq has a fixed order.
        segments: how the work of key tiles is split.
        config, precision: tile sizes; of float32 products.
    """

    q: Any
    k: Any
    v: Any
    d_out: Any
    out: Any
    lse: Any
    d_lse: Any
    selected: Any
    dq: Any
    dk: Any
    dv: Any
    ends: Ends
    scale: float
    tables: DeviceTables
    key_tiles: KeyTiles
    query_tiles: QueryTiles | None
    segments: Segments
    config: TritonConfig
    precision: str

    @property
    def lanes(self) -> tuple[int, int]:
        """Heads and batch rows: the outer axes of the grids over rows."""
        return self.q.shape[2], self.q.shape[0]

    @property
    def lift(self) -> float:
        """log2 of the factor that weights and slopes carry."""
        return LIFT if self.q.dtype == library_of(self.q).float16 else 0.0


class Rows(NamedTuple):
    """What `kernels.delta.row_constants` makes of the rows: float32 (batch, heads, rows)."""

    shift: Any
    delta: Any


def launch_rows(call: Call) -> Rows:
    """Return the constants of the rows; see `kernels.delta.row_constants`."""
    heads, batch = call.lanes
    count = call.q.shape[1]
    shape = shape_constants(1, call.q.shape[3], call.v.shape[3], call.precision)
    library = library_of(call.q)
    rows = Rows(*(library.empty((batch, heads, count), dtype=library.float32, device=call.q.device) for _ in range(2)))
    d_lse = call.lse if call.d_lse is None else call.d_lse
    kernel_on(call.q, row_constants)[-(-count // call.config.grad_rows), heads, batch](
        q=call.q, out=call.out, d_out=call.d_out, lse=call.lse, d_lse=d_lse, shift=rows.shift, delta=rows.delta,
        **strides("q", call.q), **strides("r", call.out), **strides("o", call.d_out), **strides("l", call.lse, "bhl"),
        **strides("dl", d_lse, "bhl"), rows_all=count, lift=call.lift,
        **{name: shape[name] for name in ("HEAD_DIM", "V_HEAD_DIM", "BLOCK_D", "BLOCK_DV")},
        BLOCK_M=call.config.grad_rows, HAS_D_LSE=call.d_lse is not None,
        num_warps=DEFAULT_WARPS, num_stages=DEFAULT_STAGES,
    )  # fmt: skip
    return rows


def launch_grads(call: Call, rows: Rows, index: Index, dq_sum: Any) -> None:
    """Write dk and dv, and add to dq_sum unless it is None; see `kernels.grads.grads`."""
    tiles, split, config = call.key_tiles, call.segments, call.config
    batch, _, kv_heads, width = call.k.shape
    group, library = call.q.shape[2] // kv_heads, library_of(call.q)
    if split.parts:
        before = split_ptr(tiles, split, index, group, config.grad_rows)
    else:
        before = library.zeros((batch, kv_heads, tiles.count + 1), dtype=library.int32, device=call.q.device)
    shape = (batch, kv_heads, split.parts, config.grad_keys)
    sums = [
        library.empty((*shape, block), dtype=library.float32, device=call.q.device)
        for block in blocks(width, call.v.shape[3])
    ]
    factors = (call.scale * 2.0**-call.lift, 2.0**-call.lift)
    kernel_on(call.q, grads)[split.parts + tiles.count, kv_heads, batch](
        dq=rows.shift if dq_sum is None else dq_sum, dk=call.dk, dv=call.dv, dk_parts=sums[0], dv_parts=sums[1],
        split_ptr=before, dk_factor=factors[0], dv_factor=factors[1], key_tiles=tiles.count, parts=split.parts,
        segment=split.segment, ADD_DQ=dq_sum is not None,
        **{name: getattr(tiles, name) for name in KEY_TILES},
        **strides("dk", call.dk), **strides("dv", call.dv),
        **_shared(call, rows), **_bounds(call), **_routes(call, index),
        **grad_constants(call.tables.geometry, call.ends.padded, tiles.partial, config),
        num_warps=config.grad_warps, num_stages=config.grad_stages,
    )  # fmt: skip
    for parts, target, factor in zip(sums, (call.dk, call.dv), factors, strict=True):
        if split.parts:
            launch_join_segments(call, parts, target, before, factor)


def split_ptr(tiles: KeyTiles, split: Segments, index: Index, group: int, rows: int) -> Any:
    """Return how many parts lie before each key tile, int32 (batch, kv_heads, tiles + 1), on the device.

    Tiles of rows hold `rows` of them.
    """
    tiles_of_heads = index.tile_ptr(rows).diff(dim=-1).unflatten(1, (-1, group))
    routed = tiles_of_heads.sum(2, dtype=library_of(index.ptr).int32)
    work = tiles.work * group + routed.index_select(2, tiles.tile_chunk)
    parts = (work + (split.segment - 1)) // split.segment
    return starts(parts * (work > split.segment))


def launch_join_segments(call: Call, parts: Any, target: Any, before: Any, factor: float) -> None:
    """Add the sums of split key tiles; see `kernels.grads.join_segments`."""
    tiles, batch, kv_heads = call.key_tiles, target.shape[0], target.shape[2]
    kernel_on(call.q, join_segments)[call.segments.parts, kv_heads, batch](
        sums_of_parts=parts, target=target, split_ptr=before, tile_lo=tiles.tile_lo, tile_hi=tiles.tile_hi,
        **strides("", target), key_tiles=tiles.count, parts=call.segments.parts, factor=factor,
        WIDTH=target.shape[3], BLOCK=parts.shape[4], BLOCK_N=call.config.grad_keys,
        num_warps=DEFAULT_WARPS, num_stages=DEFAULT_STAGES,
    )  # fmt: skip


def launch_query_grads(call: Call, rows: Rows, index: Index, factor: float) -> None:
    """Write dq, sums in a fixed order; see `kernels/query_grads.py`."""
    tiles, config, (heads, batch) = call.query_tiles, call.config, call.lanes
    assert tiles is not None, "asked for where dq is not summed by atomic additions"
    places = (tiles.places, call.q.shape[1] * call.selected.shape[3])
    library = library_of(call.q)
    anchored, routed = (
        library.empty((batch, heads, count, call.q.shape[3]), dtype=library.float32, device=call.q.device)
        for count in places
    )
    if len(tiles.items):
        launch_anchor_query_grads(call, rows, anchored)
    if call.selected.shape[3]:
        launch_routed_query_grads(call, rows, index, routed)
    selected, constants = call.selected, shape_constants(1, call.q.shape[3], 1, "ieee")
    kernel_on(call.q, join_query_grads)[len(tiles.tiles), heads, batch](
        tiles=tiles.tiles, parts=tiles.parts, anchor_parts=anchored, routed_parts=routed, selected=selected, dq=call.dq,
        **strides("s", selected, "bhls"), **strides("", call.dq), rows_all=call.q.shape[1],
        anchor_places=places[0], slots=selected.shape[3], factor=factor,
        HEAD_DIM=constants["HEAD_DIM"], BLOCK_D=constants["BLOCK_D"], BLOCK_M=config.grad_query_rows,
        num_warps=config.grad_query_warps, num_stages=DEFAULT_STAGES,
    )  # fmt: skip


def launch_anchor_query_grads(call: Call, rows: Rows, parts: Any) -> None:
    """Write the partial sums of the anchors; see `kernels.query_grads.anchor_query_grads`."""
    tiles, config = call.query_tiles, call.config
    assert tiles is not None, "asked for where dq is not summed by atomic additions"
    kernel_on(call.q, anchor_query_grads)[len(tiles.items), *call.lanes](
        dq_parts=parts, items=tiles.items, entries=tiles.entries, ends=call.ends.ends,
        stride_ends=call.ends.segment_stride, places=parts.shape[2],
        **_shared(call, rows),
        **_bounds(call),
        **query_constants(config), PADDED=call.ends.padded,
        num_warps=config.grad_query_warps, num_stages=config.grad_query_stages,
    )  # fmt: skip


def launch_routed_query_grads(call: Call, rows: Rows, index: Index, parts: Any) -> None:
    """Write the partial sums of the routes; see `kernels.query_grads.routed_query_grads`."""
    config, chunks, places = call.config, call.tables.geometry.chunks, parts.shape[2]
    bound = places // config.grad_query_rows + min(chunks, places)
    kernel_on(call.q, routed_query_grads)[bound, *call.lanes](
        dq_parts=parts, tile_ptr=index.tile_ptr(config.grad_query_rows), chunk_lo=call.tables.keys.chunk_lo,
        **_shared(call, rows), **_routes(call, index),
        **query_constants(config), SPLIT=call.tables.geometry.splits_chunks,
        num_warps=config.grad_query_warps, num_stages=config.grad_query_stages,
    )  # fmt: skip


def _shared(call: Call, rows: Rows) -> dict[str, Any]:
    """Return the arguments that the kernels of pairs share."""
    arrays = {"q": call.q, "k": call.k, "v": call.v}
    offsets = {name: value for letter, x in arrays.items() for name, value in strides(letter, x).items()}
    group = call.q.shape[2] // call.k.shape[2]
    return arrays | offsets | strides("o", call.d_out) | rows._asdict() | {
        "d_out": call.d_out, "rows_all": call.q.shape[1], "q_start": call.tables.geometry.q_start,
        "reach": call.tables.geometry.reach, "scale": call.scale * LOG2_E, "lift": call.lift,
    } | shape_constants(group, call.q.shape[3], call.v.shape[3], call.precision)  # fmt: skip


def _bounds(call: Call) -> dict[str, Any]:
    """Return the argument by which token causality bounds pairs."""
    return {"ahead": 0 if call.tables.geometry.token_causal else FAR.value}


def _routes(call: Call, index: Index) -> dict[str, Any]:
    """Return the arguments that the kernels of routed pairs share."""
    geometry, runs, slots = call.tables.geometry, call.tables.runs, call.selected.shape[3]
    return {
        "entries": index.entries, "ptr": index.ptr, "places": call.q.shape[1] * slots, "slots": max(slots, 1),
        "chunks": geometry.chunks, "stops": call.ends.stops, "stride_stops": call.ends.stride,
        "most_ranges": geometry.most_ranges, "run_of_row": runs.run_of_row, "anchor_ptr": runs.anchor_ptr,
        "anchor_lo": runs.anchor_lo, "anchor_hi": runs.anchor_hi,
    }  # fmt: skip


def strides(letter: str, x: Any, axes: str = "blhd") -> dict[str, int]:
    """Return the strides of an array as arguments of a kernel."""
    return {f"stride_{letter}{axis}": x.stride(i) for i, axis in enumerate(axes)}


def blocks(head_dim: int, v_head_dim: int) -> tuple[int, int]:
    """Return the tile widths of head_dim and v_head_dim."""
    constants = shape_constants(1, head_dim, v_head_dim, "ieee")
    return constants["BLOCK_D"], constants["BLOCK_DV"]


def grad_constants(geometry: Geometry, padded: bool, partial: bool, config: TritonConfig) -> dict[str, Any]:
    """Return the compile-time arguments of the gradients kernel that the plan and the config decide."""
    return {
        "BLOCK_M": config.grad_rows, "BLOCK_N": config.grad_keys, "PADDED": padded, "PARTIAL": partial,
        "SPLIT": geometry.splits_chunks,
    }  # fmt: skip


def query_constants(config: TritonConfig) -> dict[str, Any]:
    """Return the compile-time arguments of the query-stationary kernels that the config decides."""
    return {"BLOCK_M": config.grad_query_rows, "BLOCK_N": config.grad_query_keys}
