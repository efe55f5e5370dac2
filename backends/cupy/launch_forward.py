"""Launches of the kernels of the forward: from arrays and tables to their arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

from sparsemoc.backends.cupy.config import CupyConfig
from sparsemoc.backends.cupy.index import index
from sparsemoc.backends.cupy.machine import Machine, layouts_of
from sparsemoc.backends.cupy.pair_kernels import (
    MERGE_THREADS,
    anchors_kernel,
    clear_kernel,
    merge_kernel,
    merged_rows,
    routed_kernel,
    vector_width,
)
from sparsemoc.backends.cupy.tables import DeviceTables
from sparsemoc.backends.planning.ends import Ends
from sparsemoc.backends.planning.geometry import Geometry
from sparsemoc.backends.planning.query_tiles import QueryTiles
from sparsemoc.backends.protocol import Array
from sparsemoc.spec.routing import Block

#: Most blocks that clear places: each goes on to others.
_MOST_CLEARING = 4096


class Call(NamedTuple):
    """One slice of a call: what every launch needs.

    Attributes:
        q, k, v: (batch, tokens, heads or kv_heads, head_dim or v_head_dim), any strides.
        selected: int32 (batch, heads, rows, slots), contiguous.
        ends: where valid tokens end.
        scale: factor on the logits, log2(e) included, not negative.
        tables, tiles, config: of the plan.
        precision: of float32 products.
        fault: the word that kernels report to.
    """

    q: Array
    k: Array
    v: Array
    selected: Array
    ends: Ends
    scale: float
    tables: DeviceTables
    tiles: QueryTiles
    config: CupyConfig
    precision: str
    fault: Array

    @property
    def machine(self) -> Machine:
        """Where the arrays are."""
        return self.tables.machine

    @property
    def lanes(self) -> tuple[int, int]:
        """Heads and batch rows: the outer axes of every grid."""
        return self.q.shape[2], self.q.shape[0]

    @property
    def dtype(self) -> str:
        """Of q, k and v."""
        return self.machine.dtype(self.q)

    @property
    def width(self) -> int:
        """Columns of partial outputs: v_head_dim, in whole vectors."""
        return vector_width(self.v.shape[3], self.dtype)


class Partials(NamedTuple):
    """Normalised partial outputs (batch, heads, places, width) and their base-2 lse (batch, heads, places)."""

    out: Array
    lse: Array


def shares_routes(geometry: Geometry, config: CupyConfig) -> bool:
    """Return whether routing units are large enough for the query-major way: the anchors' kernel does their routes."""
    unit = geometry.plan.spec.unit
    return geometry.plan.slots > 0 and isinstance(unit, Block) and unit.n >= config.anchor_union


def launch_anchors(call: Call, partials: Partials) -> None:
    """Attend every item of the anchors; see anchors.cu."""
    tables, tiles, runs = call.tables, call.tiles, call.tables.runs
    shared_routes = shares_routes(tables.geometry, call.config)
    call.machine.launch(
        anchors_kernel(call.dtype, call.q.shape[3], call.v.shape[3], call.precision, call.config),
        (tiles.items.shape[0], *call.lanes),
        items=tiles.items, entries=tiles.entries, ends=call.ends.ends if call.ends.padded else None,
        selected=call.selected if shared_routes else None, slots=call.selected.shape[3] if shared_routes else 0,
        run_chunk=runs.run_chunk, run_base=runs.run_base, run_stop=tables.run_stop, fault=call.fault,
        stride_ends=call.ends.segment_stride, rows=call.q.shape[1], places=tiles.places,
        causal=int(tables.geometry.token_causal), **_common(call, partials),
    )  # fmt: skip


def launch_routed(call: Call, partials: Partials) -> None:
    """Attend every row to the chunks it chose, chunk by chunk; see routed.cu."""
    config, chunks, (heads, batch) = call.config, call.tables.geometry.chunks, call.lanes
    lists = index(call.tables, call.selected, config, call.fault)
    places = partials.lse.shape[2]
    total = batch * heads * places
    call.machine.launch(
        clear_kernel(call.dtype, call.v.shape[3]), (min(-(-total // MERGE_THREADS), _MOST_CLEARING), 1, 1),
        lse=partials.lse, count=total,
    )  # fmt: skip
    span = routed_span(call.tables.geometry, config)
    stay = keys_stay(call.tables.geometry, config)
    group = config.routed_rows * span
    call.machine.launch(
        routed_kernel(call.dtype, call.q.shape[3], call.v.shape[3], call.precision, config, stay),
        (places // group + min(chunks, places), heads, batch),
        entries=lists.entries, ptr=lists.ptr, tile_ptr=lists.tile_ptr(group), chunks=chunks, places=places,
        slots=call.selected.shape[3], span=span, **_common(call, partials),
    )  # fmt: skip


def keys_stay(geometry: Geometry, config: CupyConfig) -> bool:
    """Return whether every chunk fits into a tile of keys, which then stays while rows pass by it."""
    return geometry.most_chunk <= config.routed_keys and not geometry.splits_chunks


def routed_span(geometry: Geometry, config: CupyConfig) -> int:
    """Return how many groups of rows a block takes: several only where the keys of a chunk stay for all of them."""
    return config.routed_span if keys_stay(geometry, config) else 1


def _common(call: Call, partials: Partials) -> dict[str, Any]:
    """Return the arguments that the anchors and the routed pairs share."""
    geometry, runs, machine = call.tables.geometry, call.tables.runs, call.machine
    arrays = {"q": call.q, "k": call.k, "v": call.v}
    return arrays | layouts_of(machine, arrays) | {
        "chunk_lo": call.tables.keys.chunk_lo, "stops": call.ends.stops, "stride_stops": call.ends.stride,
        "run_of_row": runs.run_of_row, "anchor_ptr": runs.anchor_ptr, "anchor_lo": runs.anchor_lo,
        "anchor_hi": runs.anchor_hi, "out": partials.out, "lse": partials.lse, "head_dim": call.q.shape[3],
        "v_head_dim": call.v.shape[3], "width": call.width, "group": call.q.shape[2] // call.k.shape[2],
        "q_start": geometry.q_start, "reach": min(geometry.reach, geometry.plan.k_tokens),
        "splits": int(geometry.splits_chunks), "scale": call.scale,
    }  # fmt: skip


def launch_merge(call: Call, anchored: Partials, routed: Partials, slots: int, out: Array, lse: Array) -> None:
    """Merge the partial outputs of every row; see merge.cu."""
    tiles, machine = call.tiles, call.machine
    pieces = -(-call.config.anchor_rows // merged_rows(call.dtype, call.v.shape[3]))
    out_strides, lse_strides = machine.strides(out), machine.strides(lse)
    machine.launch(
        merge_kernel(call.dtype, call.v.shape[3]), (tiles.tiles.shape[0] * pieces, *call.lanes),
        tiles=tiles.tiles, parts=tiles.parts, anchor_out=anchored.out, anchor_lse=anchored.lse, routed_out=routed.out,
        routed_lse=routed.lse, out=out, lse=lse, stride_ob=out_strides[0], stride_ol=out_strides[1],
        stride_oh=out_strides[2], stride_lb=lse_strides[0], stride_lh=lse_strides[1], pieces=pieces,
        rows=call.q.shape[1], anchor_places=tiles.places, slots=slots, width=call.width, v_head_dim=call.v.shape[3],
    )  # fmt: skip
