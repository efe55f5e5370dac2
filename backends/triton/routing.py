"""Launches of the routing kernels: pool, route, route dropout, and the chunk-major index."""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

import triton

from sparsemoc.backends.planning.ends import Ends
from sparsemoc.backends.planning.reach import Candidates
from sparsemoc.backends.protocol import Randomness
from sparsemoc.backends.triton.config import TritonConfig
from sparsemoc.backends.triton.device import DeviceTables, numbers, poisson_thresholds
from sparsemoc.backends.triton.kernels.dropout import drop_kernel
from sparsemoc.backends.triton.kernels.index import count_kernel, place_kernel
from sparsemoc.backends.triton.kernels.pool import pool_kernel
from sparsemoc.backends.triton.kernels.route import route_kernel, split_kernel
from sparsemoc.backends.triton.library import kernel_on, library_of, starts
from sparsemoc.backends.triton.routing_tiles import (
    drop_constants,
    index_constants,
    pool_constants,
    route_constants,
    route_warps,
    split_constants,
)
from sparsemoc.spec.routing import Block, RouteDropout

#: Most slots of `selected`: the running list of a unit is kept in registers.
MOST_SLOTS = 512
#: Warps of all kernels but that of the route, which the config decides.
WARPS = 4
#: Words of a seed with the numbers of the first batch row and head behind it.
_WITH_STARTS = 4


class Index(NamedTuple):
    """A selection by chunk: entries ptr[b, h, c] ... ptr[b, h, c + 1] - 1 chose chunk c.

    Attributes:
        entries: int32 (batch, heads, rows * slots), row * slots + slot, ascending in each chunk; undefined from
            ptr[b, h, -1] on.
        ptr: int32 (batch, heads, chunks + 1), chunks of all samples.
    """

    entries: Any
    ptr: Any

    def tile_ptr(self, rows: int) -> Any:
        """Return the first tile of each chunk, int32 (batch, heads, chunks + 1), for tiles of `rows` entries."""
        return starts((self.ptr.diff(dim=-1) + (rows - 1)) // rows)


def pool(tables: DeviceTables, k: Any, ends: Ends, config: TritonConfig) -> Any:
    """Return the mean valid key of each chunk, float32 (batch, kv_heads, chunks, head_dim), 0 where it has none.

    Args:
        tables: the plan's tables.
        k: (batch, tokens, kv_heads, head_dim), any strides.
        ends: where the valid keys end.
        config: tile sizes.
    """
    batch, _, kv_heads, head_dim = k.shape
    chunks = tables.geometry.chunks
    library = library_of(k)
    centroids = library.empty((batch, kv_heads, chunks, head_dim), dtype=library.float32, device=k.device)
    kernel_on(k, pool_kernel)[(chunks, kv_heads, batch)](
        k, tables.keys.chunk_lo, ends.stops, centroids,
        *k.stride(), chunks=chunks, stride_stops=ends.stride,
        **pool_constants(config, head_dim), num_warps=WARPS, num_stages=1,
    )  # fmt: skip
    return centroids


def route(
    tables: DeviceTables,
    q: Any,
    centroids: Any,
    ends: Ends,
    top_k: tuple[int, ...],
    slots: int,
    randomness: Randomness | None,
    dropout: RouteDropout | None,
    config: TritonConfig,
) -> Any:
    """Return `Layout.selected`, int32 (batch, heads, rows, slots).

    Args:
        tables: the plan's tables.
        q: (batch, rows, heads, head_dim), any strides.
        centroids: float32 (batch, kv_heads, chunks, head_dim), any strides.
        ends: where the valid tokens end.
        top_k: of each head.
        slots: width of the result, at most MOST_SLOTS.
        randomness: seed and counters of route dropout; None for none.
        dropout: what to drop; read only with `randomness`.
        config: tile sizes.
    """
    (batch, rows, heads, _), library = q.shape, library_of(q)
    selected = library.empty((batch, heads, rows, slots), dtype=library.int32, device=q.device)
    if slots == 0:
        return selected
    candidates = tables.candidates(ends)
    _route(tables, q, centroids, ends, candidates, top_k, selected, config)
    if randomness is not None and dropout is not None:
        _drop(tables, selected, ends, candidates, randomness, dropout, config)
    return selected


def _split(centroids: Any, tile: int, dim: int) -> Any:
    """Return centroids in bfloat16 pieces, (batch, kv_heads, 3, chunks, dim), padded with 0 to tiles of chunks."""
    batch, kv_heads, chunks, head_dim = centroids.shape
    width = -(-chunks // tile) * tile
    library = library_of(centroids)
    planes = library.empty((batch, kv_heads, 3, width, dim), dtype=library.bfloat16, device=centroids.device)
    kernel_on(centroids, split_kernel)[(width // tile, kv_heads, batch)](
        centroids, planes, *centroids.stride(), chunks=chunks, planes_chunks=width,
        **split_constants(head_dim, tile), num_warps=WARPS, num_stages=1,
    )  # fmt: skip
    return planes


def _route(
    tables: DeviceTables,
    q: Any,
    centroids: Any,
    ends: Ends,
    candidates: Candidates,
    top_k: tuple[int, ...],
    selected: Any,
    config: TritonConfig,
) -> None:
    """Fill `selected` with the top_k candidates of each unit."""
    batch, rows, heads, head_dim = q.shape
    slots, group = selected.shape[-1], heads // centroids.shape[1]
    dtype = str(q.dtype).removeprefix("torch.")
    constants = route_constants(config, head_dim, dtype, slots, group, *_kinds(tables))
    units, tile = constants["UNITS"], constants["CHUNKS"]
    planes = _split(centroids, tile, constants["BLOCK_D"])
    kernel_on(q, route_kernel)[(_tiles(tables, units), heads, batch)](
        q, planes, selected=selected, **_unit_tables(tables), **_candidate_tables(tables, ends, candidates),
        envelope=tables.envelope(units, tile), top_k=numbers(top_k, q.device),
        **dict(zip(("stride_qb", "stride_ql", "stride_qh", "stride_qd"), q.stride(), strict=True)),
        **_sizes(tables, ends, candidates), rows=rows, slots=slots, planes_chunks=planes.shape[3],
        **constants, num_warps=route_warps(config, slots), num_stages=config.route_stages,
    )  # fmt: skip


def _drop(
    tables: DeviceTables,
    selected: Any,
    ends: Ends,
    candidates: Candidates,
    randomness: Randomness,
    dropout: RouteDropout,
    config: TritonConfig,
) -> None:
    """Apply route dropout to `selected`, in place."""
    batch, heads, rows, slots = selected.shape
    seed = _seed(randomness, selected.device)
    constants = drop_constants(config, slots, *_kinds(tables), seed.shape[0] == _WITH_STARTS)
    units, tile = constants["UNITS"], constants["CHUNKS"]
    kernel_on(selected, drop_kernel)[(_tiles(tables, units), heads, batch)](
        selected, **_unit_tables(tables), **_candidate_tables(tables, ends, candidates),
        unit_position=tables.units.unit_position, unit_sample=tables.units.unit_sample,
        envelope=tables.envelope(units, tile, local=True), seed=seed,
        thresholds=poisson_thresholds(dropout.into, dropout.into_max, selected.device),
        **_sizes(tables, ends, candidates), rows=rows, slots=slots, into_max=dropout.into_max,
        off=int(dropout.off * 2**16),
        batch_start=_low_word(randomness.batch_start), head_start=_low_word(randomness.head_start),
        **constants, num_warps=WARPS, num_stages=1,
    )  # fmt: skip


def _kinds(tables: DeviceTables) -> tuple[bool, bool]:
    """Return whether routing units are blocks, and whether there are token windows."""
    return isinstance(tables.geometry.plan.spec.unit, Block), tables.geometry.reach >= 0


def _tiles(tables: DeviceTables, units: int) -> int:
    return -(-len(tables.geometry.units.unit_row) // units)


def _unit_tables(tables: DeviceTables) -> dict[str, Any]:
    return {name: getattr(tables.units, name) for name in ("unit_row", "unit_rows", "unit_run", "unit_runs")}


def _candidate_tables(tables: DeviceTables, ends: Ends, candidates: Candidates) -> dict[str, Any]:
    runs = {name: getattr(tables.runs, name) for name in ("run_lo", "run_hi", "run_chunk", "run_base")}
    return {
        **runs, "stops": ends.stops, "bits": candidates.bits, "first": candidates.first, "last": candidates.last,
        "near_first": tables.near.first,
    }  # fmt: skip


def _sizes(tables: DeviceTables, ends: Ends, candidates: Candidates) -> dict[str, int]:
    host = tables.geometry
    return {
        "units": len(host.units.unit_row), "words": host.runs.allowed.shape[1], "near": tables.near.width,
        "reach": min(host.reach, host.plan.k_tokens), "q_start": host.q_start, "pieces": host.most_pieces,
        "stride_stops": ends.stride, "stride_bits": candidates.stride, "stride_near": candidates.near_stride,
    }  # fmt: skip


def _seed(randomness: Randomness, device: Any) -> Any:
    """Return the words of the seed, low and high, as int32 (2,) on a device, without a copy from the host."""
    library, seed = library_of(device), randomness.seed
    if isinstance(seed, Integral):
        seed = library.full((1,), (int(seed) + 2**63) % 2**64 - 2**63, dtype=library.int64, device=device)
    return seed.reshape(-1).view(library.int32)


def _low_word(number: int) -> int:
    """Return the low 32 bits as an int32."""
    return (number + 2**31) % 2**32 - 2**31


def index(tables: DeviceTables, selected: Any, config: TritonConfig) -> Index:
    """Return a selection by chunk, a stable counting sort that never waits for the device.

    Args:
        tables: the plan's tables.
        selected: int32 (batch, heads, rows, slots), contiguous.
        config: tile sizes.
    """
    batch, heads, rows, slots = selected.shape
    chunks = tables.geometry.chunks
    # As many rows to a tile as there are chunks, and the table of counts is no larger than a column of `selected`.
    tile_rows = max(config.index_rows, triton.next_power_of_2(chunks))
    tiles = -(-rows // tile_rows)
    library = library_of(selected)
    entries = library.empty((batch, heads, rows * slots), dtype=library.int32, device=selected.device)
    counts = library.zeros((batch, heads, chunks * tiles + 1), dtype=library.int32, device=selected.device)
    if slots == 0:
        return Index(entries, counts[..., ::tiles].contiguous())

    def launch(kernel: Any, *arrays: Any) -> None:
        kernel_on(selected, kernel)[(tiles, heads, batch)](
            selected, tables.runs.run_of_row, tables.runs.run_base, *arrays,
            rows=rows, tile_rows=tile_rows, slots=slots, stride_count=counts.shape[-1],
            **index_constants(config, slots), num_warps=WARPS, num_stages=1,
        )  # fmt: skip

    launch(count_kernel, counts)
    places = counts.cumsum(-1, dtype=library.int32)
    ptr = places[..., ::tiles].clone(memory_format=library.contiguous_format)  # placing moves the places on
    launch(place_kernel, places, entries)
    return Index(entries, ptr)
