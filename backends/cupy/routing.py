"""Launches of the routing kernels: pool, route, route dropout."""

from __future__ import annotations

from sparsemoc.backends.cupy.machine import strides_of
from sparsemoc.backends.cupy.routing_tiles import RoutingConfig, pool_kernel
from sparsemoc.backends.cupy.tables import DeviceTables, Ends
from sparsemoc.backends.protocol import Array


def pool(tables: DeviceTables, k: Array, ends: Ends, config: RoutingConfig) -> Array:
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


def pool_units(tables: DeviceTables, q: Array, ends: Ends, config: RoutingConfig) -> Array:
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


def unit_tables(tables: DeviceTables) -> dict[str, Array]:
    """Return the tables of routing units by the names of the kernels' arguments."""
    units = {name: getattr(tables.units, name) for name in ("unit_row", "unit_rows", "unit_run", "unit_runs")}
    return {**units, "run_chunk": tables.runs.run_chunk}
