"""Attention over anchors and routes on the host: tables, workspace, launches."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton

from sparsemoc.backends.planning.ends import Ends
from sparsemoc.backends.planning.geometry import Geometry, geometry
from sparsemoc.backends.planning.query_tiles import QueryTiles, Sizes, query_tiles
from sparsemoc.backends.planning.workspace import Slice, slices
from sparsemoc.backends.protocol import Problem
from sparsemoc.backends.triton import providers, routing
from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.backends.triton.device import DeviceTables, device_tiles
from sparsemoc.backends.triton.kernels.anchors import attend_anchors
from sparsemoc.backends.triton.kernels.merge import merge
from sparsemoc.backends.triton.kernels.routed import attend_routed
from sparsemoc.backends.triton.library import kernel_on, library_of
from sparsemoc.backends.triton.workspace import LOG2_E, Partials, empty_rows
from sparsemoc.spec.routing import Block

#: What Triton calls the precisions of float32 products.
_PRECISIONS = {"ieee": "tf32x3", "tf32": "tf32"}


class Call(NamedTuple):
    """One slice of a call: what every launch needs.

    Attributes:
        q, k, v: (batch, tokens, heads or kv_heads, head_dim or v_head_dim), any strides.
        selected: int32 (batch, heads, rows, slots), the last axis dense.
        ends: where valid tokens end.
        scale: factor on the logits, log2(e) included, not negative.
        tables, tiles, config: of the plan.
        precision: of float32 products.
    """

    q: Any
    k: Any
    v: Any
    selected: Any
    ends: Ends
    scale: float
    tables: DeviceTables
    tiles: QueryTiles
    config: TritonConfig
    precision: str

    @property
    def lanes(self) -> tuple[int, int]:
        """Heads and batch rows: the outer axes of every grid."""
        return self.q.shape[2], self.q.shape[0]


def attend(
    problem: Problem,
    tables: DeviceTables,
    q: Any,
    k: Any,
    v: Any,
    selected: Any,
    ends: Ends,
    scale: float,
    config: TritonConfig,
) -> tuple[Any, Any]:
    """Return out (batch, rows, heads, v_head_dim), as q lies in memory, and lse (batch, heads, rows), natural log.

    Args:
        problem: the call.
        tables: of its plan, on the device of the arrays.
        q, k, v: (batch, tokens, heads or kv_heads, head_dim or v_head_dim), any strides.
        selected: int32 (batch, heads, rows, slots).
        ends: where the valid tokens of chunks and segments end.
        scale: factor on the logits.
        config: the tile sizes.
    """
    provider = providers.chosen(problem, tables.geometry, ends.padded)
    tiles = tiles_of(tables, config, provider)
    out = empty_rows(q, v.shape[3])
    library = library_of(q)
    lse = library.empty((q.shape[0], q.shape[2], q.shape[1]), dtype=library.float32, device=q.device)
    if scale < 0:
        q, scale = -q, -scale
    selected = selected if selected.stride(3) == 1 or selected.shape[3] <= 1 else selected.contiguous()
    whole = Call(q, k, v, selected, ends, scale * LOG2_E, tables, tiles, config, problem.options.precision)
    need = workspace(problem, tables.geometry, tiles.places, config)
    for part in slices(q.shape[0], k.shape[2], need, problem.options.max_workspace):
        _attend_slice(_cut(whole, part), provider, part.heads(out, 2), part.heads(lse, 1))
    return out, lse


def tiles_of(tables: DeviceTables, config: TritonConfig, provider: providers.Provider | None) -> QueryTiles:
    """Return the tiles of the anchors on the device."""
    return device_tiles(tables, _sizes(tables.geometry, config), 0 if provider is None else provider.least_pairs)


def _sizes(tables: Geometry, config: TritonConfig) -> Sizes:
    return Sizes(config.anchor_rows, config.anchor_keys, config.anchor_split, shares_routes(tables, config))


def shares_routes(geometry: Geometry, config: TritonConfig) -> bool:
    """Return whether routing units are large enough for the query-major way: the anchors' kernel does their routes."""
    unit = geometry.plan.spec.unit
    return geometry.plan.slots > 0 and isinstance(unit, Block) and unit.n >= config.anchor_union


def workspace(problem: Problem, geometry: Geometry, places: int, config: TritonConfig) -> int:
    """Return the bytes of temporary memory for one batch row and key head: partial outputs and the chunk-major lists.

    Args:
        problem: the call.
        geometry: the tables of its plan.
        places: `QueryTiles.places`.
        config: the tile sizes.
    """
    routed = 0 if shares_routes(geometry, config) else geometry.rows * geometry.plan.slots
    width = 4 if config.merge_float32 or problem.dtype == "float32" else 2
    partials = (places + routed) * (problem.v_head_dim * width + 4)
    return problem.group * (partials + 4 * routed + 12 * geometry.chunks)


def _cut(call: Call, part: Slice) -> Call:
    """Return the part of a call that belongs to a slice."""
    return call._replace(
        q=part.heads(call.q, 2),
        k=part.kv_heads(call.k, 2),
        v=part.kv_heads(call.v, 2),
        selected=part.heads(call.selected, 1),
        ends=call.ends.of(part),
    )


def _attend_slice(call: Call, provider: providers.Provider | None, out: Any, lse: Any) -> None:
    """Write out and lse of a slice."""
    anchored = _partials(call, call.tiles.places)
    if provider is not None:
        for one in call.tiles.provided:
            providers.attend_rectangle(provider, one, call.q, call.k, call.v, call.scale, anchored)
    if len(call.tiles.items):
        launch_anchors(call, anchored)
    slots = 0 if shares_routes(call.tables.geometry, call.config) else call.selected.shape[3]
    routed = _partials(call, call.q.shape[1] * slots)
    if slots:
        launch_routed(call, routed)
    launch_merge(call, anchored, routed, slots, out, lse)


def _partials(call: Call, places: int) -> Partials:
    (heads, batch), library = call.lanes, library_of(call.q)
    dtype = library.float32 if call.config.merge_float32 else call.q.dtype
    out = library.empty((batch, heads, places, call.v.shape[3]), dtype=dtype, device=call.q.device)
    return Partials(out, library.empty((batch, heads, places), dtype=library.float32, device=call.q.device))


def launch_anchors(call: Call, partials: Partials) -> None:
    """Attend every item of the anchors; see `kernels.anchors.attend_anchors`."""
    tables, tiles, runs, config = call.tables, call.tiles, call.tables.runs, call.config
    kernel_on(call.q, attend_anchors)[len(tiles.items), *call.lanes](
        items=tiles.items, entries=tiles.entries, ends=call.ends.ends, selected=call.selected,
        run_chunk=runs.run_chunk, run_base=runs.run_base, out=partials.out, lse=partials.lse,
        stride_sb=call.selected.stride(0), stride_sh=call.selected.stride(1), stride_sl=call.selected.stride(2),
        stride_ends=call.ends.segment_stride, places=tiles.places,
        **_common(call),
        **anchor_constants(tables.geometry, call.ends.padded, config),
        **shape_constants(call.q.shape[2] // call.k.shape[2], call.q.shape[3], call.v.shape[3], call.precision),
        num_warps=config.anchor_warps, num_stages=config.anchor_stages,
    )  # fmt: skip


def launch_routed(call: Call, partials: Partials) -> None:
    """Attend every row to the chunks it chose, chunk by chunk; see `kernels.routed.attend_routed`."""
    config, chunks, (heads, batch) = call.config, call.tables.geometry.chunks, call.lanes
    index = routing.index(call.tables, call.selected.contiguous(), config)
    places = partials.lse.shape[2]
    bound = places // config.routed_rows + min(chunks, places)
    kernel_on(call.q, attend_routed)[bound, heads, batch](
        entries=index.entries, ptr=index.ptr, tile_ptr=index.tile_ptr(config.routed_rows), out=partials.out,
        lse=partials.lse, chunks=chunks, places=places,
        **_common(call),
        **routed_constants(call.tables.geometry, config),
        **shape_constants(call.q.shape[2] // call.k.shape[2], call.q.shape[3], call.v.shape[3], call.precision),
        num_warps=config.routed_warps, num_stages=config.routed_stages,
    )  # fmt: skip


def _common(call: Call) -> dict[str, Any]:
    """Return the arguments that the anchors and the routed pairs share."""
    geometry, runs = call.tables.geometry, call.tables.runs
    arrays = {"q": call.q, "k": call.k, "v": call.v}
    strides = {f"stride_{n}{axis}": x.stride(i) for n, x in arrays.items() for i, axis in enumerate("blhd")}
    return arrays | strides | {
        "chunk_lo": call.tables.keys.chunk_lo, "stops": call.ends.stops, "stride_stops": call.ends.stride,
        "run_of_row": runs.run_of_row, "anchor_ptr": runs.anchor_ptr, "anchor_lo": runs.anchor_lo,
        "anchor_hi": runs.anchor_hi, "heads": call.q.shape[2], "slots": call.selected.shape[3],
        "q_start": geometry.q_start, "reach": geometry.reach, "most_ranges": geometry.most_ranges,
        "scale": call.scale,
    }  # fmt: skip


def launch_merge(call: Call, anchored: Partials, routed: Partials, slots: int, out: Any, lse: Any) -> None:
    """Merge the partial outputs of every row; see `kernels.merge.merge`."""
    tiles, config, selected = call.tiles, call.config, call.selected
    constants = merge_constants(call.v.shape[3], config)
    grid = (len(tiles.tiles) * (constants["TILE"] // constants["BLOCK_M"]), *call.lanes)
    kernel_on(call.q, merge)[grid](
        tiles=tiles.tiles, parts=tiles.parts, anchor_out=anchored.out, anchor_lse=anchored.lse, routed_out=routed.out,
        routed_lse=routed.lse, selected=selected, out=out, lse=lse,
        **{f"stride_o{axis}": out.stride(i) for i, axis in enumerate("blhd")},
        stride_sb=selected.stride(0), stride_sh=selected.stride(1), stride_sl=selected.stride(2),
        stride_lb=lse.stride(0), stride_lh=lse.stride(1), heads=call.q.shape[2], rows_all=call.q.shape[1],
        anchor_places=tiles.places, slots=slots, **constants,
        num_warps=config.merge_warps, num_stages=config.merge_stages,
    )  # fmt: skip


def least_workspace(problem: Problem, config: TritonConfig) -> int:
    """Return the bytes of temporary memory that a call without padding needs at least."""
    tables = geometry(problem.plan, False)
    return workspace(problem, tables, query_tiles(tables, _sizes(tables, config)).places, config)


def shape_constants(group: int, head_dim: int, v_head_dim: int, precision: str) -> dict[str, Any]:
    """Return the compile-time arguments of a kernel that the arrays decide.

    `precision` is that of float32 products. "ieee" is made of three products of tf32, high and low halves, which
    brings the tensor cores to within 2^-21 of a product; one of fused multiply-adds takes registers that no tile has.
    """
    return {
        "GROUP": group, "HEAD_DIM": head_dim, "V_HEAD_DIM": v_head_dim, "BLOCK_D": _block(head_dim),
        "BLOCK_DV": _block(v_head_dim), "PRECISION": _PRECISIONS[precision],
    }  # fmt: skip


def anchor_constants(geometry: Geometry, padded: bool, config: TritonConfig) -> dict[str, Any]:
    """Return the compile-time arguments of the anchors kernel that the plan and the config decide."""
    union = shares_routes(geometry, config)
    return {
        "BLOCK_M": config.anchor_rows, "BLOCK_N": config.anchor_keys, "PADDED": padded, "BAND": geometry.reach >= 0,
        "CAUSAL": geometry.token_causal, "UNION": union, "SPLIT": union and geometry.splits_chunks,
    }  # fmt: skip


def routed_constants(geometry: Geometry, config: TritonConfig) -> dict[str, Any]:
    """Return the compile-time arguments of the routed kernel that the plan and the config decide."""
    return {"BLOCK_M": config.routed_rows, "BLOCK_N": config.routed_keys, "SPLIT": geometry.splits_chunks}


def merge_constants(v_head_dim: int, config: TritonConfig) -> dict[str, Any]:
    """Return the compile-time arguments of the merge."""
    return {
        "V_HEAD_DIM": v_head_dim, "BLOCK_DV": _block(v_head_dim), "BLOCK_M": config.merge_rows,
        "TILE": config.anchor_rows,
    }  # fmt: skip


def _block(width: int) -> int:
    """Return the tile width of a head_dim: matrix products take powers of 2 from 16 on."""
    return max(16, int(triton.next_power_of_2(width)))
