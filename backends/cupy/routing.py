"""Launches of the routing kernels: pool, route, route dropout."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from sparsemoc.backends.cupy.config import CupyConfig
from sparsemoc.backends.cupy.machine import strides_of
from sparsemoc.backends.cupy.routing_tiles import (
    drop_kernel,
    pool_kernel,
    route_kernel,
    route_tile,
    split_kernel,
)
from sparsemoc.backends.cupy.shared import head_block
from sparsemoc.backends.cupy.tables import DeviceTables, numbers, poisson_thresholds
from sparsemoc.backends.planning.ends import Ends
from sparsemoc.backends.planning.reach import Candidates
from sparsemoc.backends.protocol import Array, Randomness
from sparsemoc.spec.philox import seed_key
from sparsemoc.spec.routing import Block, RouteDropout


def pool(tables: DeviceTables, k: Array, ends: Ends, config: CupyConfig) -> Array:
    """Return the mean valid key of each chunk, float32 (batch, kv_heads, chunks, head_dim), 0 where it has none.

    Args:
        tables: the plan's tables.
        k: (batch, tokens, kv_heads, head_dim), any strides.
        ends: where the valid keys end.
        config: tile sizes.
    """
    (batch, _, kv_heads, head_dim), machine = k.shape, tables.machine
    chunks = tables.geometry.chunks
    centroids = machine.empty((batch, kv_heads, chunks, head_dim), "float32")
    machine.launch(
        pool_kernel("pool", machine.dtype(k), head_dim, config.pool_warps), (chunks, kv_heads, batch),
        k=k, chunk_lo=tables.keys.chunk_lo, stops=ends.stops, centroids=centroids, **strides_of(machine, "k", k),
        stride_stops=ends.stride, head_dim=head_dim, aligned_k=machine.aligned(k),
    )  # fmt: skip
    return centroids


def pool_units(tables: DeviceTables, q: Array, ends: Ends, config: CupyConfig) -> Array:
    """Return the mean valid query of each routing unit, float32 (batch, heads, units, head_dim), 0 where it has none.

    Args:
        tables: the plan's tables.
        q: (batch, rows, heads, head_dim), any strides.
        ends: where the valid tokens end.
        config: tile sizes.
    """
    (batch, _, heads, head_dim), machine = q.shape, tables.machine
    units = len(tables.geometry.units.unit_row)
    means = machine.empty((batch, heads, units, head_dim), "float32")
    machine.launch(
        pool_kernel("pool_units", machine.dtype(q), head_dim, config.pool_warps), (units, heads, batch),
        q=q, **unit_tables(tables), stops=ends.stops, means=means, **strides_of(machine, "q", q),
        stride_stops=ends.stride, head_dim=head_dim, q_start=tables.geometry.q_start, aligned_q=machine.aligned(q),
    )  # fmt: skip
    return means


def route(
    tables: DeviceTables,
    q: Array,
    centroids: Array,
    ends: Ends,
    top_k: tuple[int, ...],
    slots: int,
    randomness: Randomness | None,
    dropout: RouteDropout | None,
    config: CupyConfig,
    fault: Array | None,
) -> Array:
    """Return `Layout.selected`, int32 (batch, heads, rows, slots).

    Args:
        tables: the plan's tables.
        q: (batch, rows, heads, head_dim), any strides.
        centroids: float32 (batch, kv_heads, chunks, head_dim), any strides.
        ends: where the valid tokens end.
        top_k: of each head.
        slots: width of the result, at most `routing_tiles.most_slots`.
        randomness: seed and counters of route dropout; None for none.
        dropout: what to drop; read only with `randomness`.
        config: tile sizes.
        fault: where a selected chunk that does not exist is reported.

    Raises:
        UnsupportedError: more routes than shared memory holds.
    """
    batch, rows, heads, _ = q.shape
    selected = tables.machine.empty((batch, heads, rows, slots), "int32")
    if slots == 0:
        return selected
    candidates = tables.candidates(ends)
    if isinstance(tables.geometry.plan.spec.unit, Block):
        means = pool_units(tables, q, ends, config)
        _select(tables, means, "bhld", centroids, ends, candidates, top_k, selected, config)
    else:
        _select(tables, q, "blhd", centroids, ends, candidates, top_k, selected, config)
    if randomness is not None and dropout is not None:
        drop(tables, selected, ends, candidates, randomness, dropout, fault)
    return selected


def _select(
    tables: DeviceTables,
    queries: Array,
    axes: str,
    centroids: Array,
    ends: Ends,
    candidates: Candidates,
    top_k: tuple[int, ...],
    selected: Array,
    config: CupyConfig,
) -> None:
    """Fill `selected` with the top_k candidates of each unit, whose queries lie along axis "l" of `axes`."""
    (batch, heads, rows, slots), machine, head_dim = selected.shape, tables.machine, queries.shape[3]
    kernel = route_kernel(machine.dtype(queries), head_dim, max(top_k), config, machine.capability)
    units, tile = route_tile(kernel)
    planes = split(tables, centroids, tile)
    machine.launch(
        kernel, (-(-len(tables.geometry.units.unit_row) // units), heads, batch),
        q=queries, planes=planes, **strides_of(machine, "q", queries, axes), **unit_tables(tables),
        **_candidate_tables(tables, ends, candidates), envelope=tables.envelope(units, tile),
        top_k=numbers(top_k, machine), selected=selected, rows=rows, planes_chunks=planes.shape[3], slots=slots,
        group=heads // centroids.shape[1], head_dim=head_dim, aligned_q=machine.aligned(queries),
    )  # fmt: skip


def split(tables: DeviceTables, centroids: Array, tile: int) -> Array:
    """Return centroids in bfloat16 pieces, (batch, kv_heads, 3, chunks, width), padded with 0 to tiles of chunks."""
    (batch, kv_heads, chunks, head_dim), machine = centroids.shape, tables.machine
    kernel, padded, width = split_kernel(head_dim), -(-chunks // tile) * tile, head_block(head_dim)
    planes = machine.empty((batch, kv_heads, 3, padded, width), "bfloat16")
    machine.launch(
        kernel, (-(-padded * width // (8 * kernel.threads)), kv_heads, batch),
        centroids=centroids, planes=planes, **strides_of(machine, "c", centroids, "bhld"), chunks=chunks,
        planes_chunks=padded, head_dim=head_dim, aligned=machine.aligned(centroids),
    )  # fmt: skip
    return planes


def drop(
    tables: DeviceTables,
    selected: Array,
    ends: Ends,
    candidates: Candidates,
    randomness: Randomness,
    dropout: RouteDropout,
    fault: Array | None,
) -> None:
    """Apply route dropout to `selected`, in place."""
    (batch, heads, rows, slots), machine = selected.shape, tables.machine
    kernel = drop_kernel(slots)
    units = kernel.threads // 32
    machine.launch(
        kernel, (-(-len(tables.geometry.units.unit_row) // units), heads, batch),
        selected=selected, **unit_tables(tables), unit_position=tables.units.unit_position,
        unit_sample=tables.units.unit_sample, run_stop=tables.run_stop, **_candidate_tables(tables, ends, candidates),
        envelope=tables.envelope(units, 4, local=True), **_seed(randomness.seed),
        thresholds=poisson_thresholds(dropout.into, dropout.into_max, machine), off=int(dropout.off * 2**16),
        batch_start=randomness.batch_start % 2**32, head_start=randomness.head_start % 2**32,
        rows=rows, slots=slots, into_max=dropout.into_max, fault=fault,
    )  # fmt: skip


def _seed(seed: Any) -> dict[str, Any]:
    """Return the seed as arguments: its words, or where it lies on the device, from where it is not copied."""
    if isinstance(seed, Integral):
        low, high = seed_key(seed)
        return {"seed": None, "seed_low": low, "seed_high": high}
    return {"seed": seed, "seed_low": 0, "seed_high": 0}


def unit_tables(tables: DeviceTables) -> dict[str, Any]:
    """Return the tables of routing units by the names of the kernels' arguments."""
    units = {name: getattr(tables.units, name) for name in ("unit_row", "unit_rows", "unit_run", "unit_runs")}
    return {**units, "run_chunk": tables.runs.run_chunk}


def _candidate_tables(tables: DeviceTables, ends: Ends, candidates: Candidates) -> dict[str, Any]:
    """Return what says which chunks a unit may take, by the names of the kernels' arguments."""
    host = tables.geometry
    runs = {name: getattr(tables.runs, name) for name in ("run_lo", "run_hi", "run_base")}
    return {
        **runs, "near_first": tables.near.first, "stops": ends.stops, "bits": candidates.bits,
        "first": candidates.first, "last": candidates.last, "stride_stops": ends.stride,
        "stride_bits": candidates.stride, "stride_near": candidates.near_stride, "units": len(host.units.unit_row),
        "words": host.runs.allowed.shape[1], "near": tables.near.width, "reach": min(host.reach, host.plan.k_tokens),
        "q_start": host.q_start,
    }  # fmt: skip
