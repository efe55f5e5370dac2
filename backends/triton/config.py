"""The tunables of the Triton kernels and their defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonConfig:
    """Tile sizes, warps and stages of each kernel. None depends on batch or heads: results do not either.

    Args:
        anchor_rows, anchor_keys: most query rows to a tile of the anchors, and keys taken at a time.
        anchor_split: keys beyond which a tile of anchors is split over several programs, about.
        anchor_union: `Block(n)` units of at least this many queries attend to their chosen chunks query-major.
        anchor_warps, anchor_stages: warps and pipeline stages of the anchors.
        routed_rows, routed_keys, routed_warps, routed_stages: the same of the routed pairs; rows that chose one chunk.
        merge_rows, merge_warps, merge_stages: the same of the merge; merge_rows divides anchor_rows.
        merge_float32: whether partial outputs are kept in float32, not in the input's dtype.
        pool_keys: keys of a chunk summed side by side.
        route_units, route_chunks: routing units to a tile, and centroids taken at a time.
        route_warps, route_stages: warps and pipeline stages of routing.
        drop_units, drop_chunks: the same of route dropout.
        index_rows: least rows to a tile of the chunk-major index, a power of two.
        index_entries: routes compared pairwise to order them, a power of two.
        grad_keys, grad_rows: keys to a program of the gradients, at most, and rows taken at a time.
        grad_segment: rows beyond which the work of a tile of keys is split over several programs, at least.
        grad_parts: most such programs for one batch row and key head; grad_segment grows until they suffice.
        grad_warps, grad_stages: warps and pipeline stages of the gradients.
        grad_atomic: whether dq is summed by atomic additions where nobody asks for a fixed order.
        grad_query_rows, grad_query_keys, grad_query_warps, grad_query_stages: as for the anchors, of dq in a fixed
            order.
    """

    anchor_rows: int = 128
    anchor_keys: int = 64
    anchor_split: int = 16384
    anchor_union: int = 64
    anchor_warps: int = 8
    anchor_stages: int = 3
    routed_rows: int = 128
    routed_keys: int = 64
    routed_warps: int = 8
    routed_stages: int = 3
    merge_rows: int = 16
    merge_warps: int = 4
    merge_stages: int = 2
    merge_float32: bool = False
    pool_keys: int = 32
    route_units: int = 64
    route_chunks: int = 32
    route_warps: int = 4
    route_stages: int = 2
    drop_units: int = 32
    drop_chunks: int = 32
    index_rows: int = 512
    index_entries: int = 64
    grad_keys: int = 128
    grad_rows: int = 32
    grad_segment: int = 16384
    grad_parts: int = 256
    grad_warps: int = 8
    grad_stages: int = 2
    grad_atomic: bool = True
    grad_query_rows: int = 128
    grad_query_keys: int = 64
    grad_query_warps: int = 8
    grad_query_stages: int = 2


#: Compute capabilities whose blocks have 160 KB of shared memory and more; those that multiply by groups of warps.
_LARGE, _WARPGROUPS, _TENSOR_MEMORY = (80, 87, 90, 100, 103), (90, 100, 103), (100, 103)


def default_config(head_dim: int, dtype: str, capability: int) -> TritonConfig:
    """Return the config for the larger of the two head_dims, a dtype name, and a GPU, for example 90 for sm_90.

    Tiles are the largest of those tried whose accumulators stay in registers, by what the compiler says of every
    architecture: `python -m bench.kernels` repeats it. What is fastest only a GPU can tell.
    """
    if dtype == "float32":
        return _float32(head_dim, capability)
    if head_dim > 128:
        stages = 2 if capability in _LARGE else 1
        # With accumulators in tensor memory, 64 rows leave too few registers for what is made of them.
        query_rows = 32 if capability in _TENSOR_MEMORY else 64
        return TritonConfig(
            anchor_rows=64, anchor_keys=32, anchor_stages=2, routed_rows=64, routed_keys=32, routed_stages=2,
            grad_rows=32, grad_keys=32, grad_stages=stages, grad_query_rows=query_rows, grad_query_keys=32,
            grad_query_stages=stages,
        )  # fmt: skip
    if capability in _WARPGROUPS:
        return TritonConfig() if head_dim > 64 else TritonConfig(grad_rows=64)
    if head_dim > 64:
        found = TritonConfig(
            anchor_keys=32, routed_keys=32, grad_rows=32, grad_keys=64, grad_query_rows=64, grad_query_keys=32,
            grad_query_warps=4,
        )  # fmt: skip
        # Slopes of float16 take products of 32-bit operands, with twice the shared memory.
        return replace(found, grad_stages=1) if dtype == "float16" else found
    return TritonConfig(grad_rows=64, grad_keys=64, grad_query_rows=64, grad_stages=1 if dtype == "float16" else 2)


def _float32(head_dim: int, capability: int) -> TritonConfig:
    """Return the config for float32: products are made of three, whose operands take as many registers."""
    rows, keys = (64, 32) if head_dim <= 64 else (32, 32) if head_dim <= 128 else (16, 16)
    grad_keys = keys if capability in _LARGE or head_dim <= 64 else 16
    return TritonConfig(
        anchor_rows=rows, anchor_keys=keys, anchor_stages=2, routed_rows=rows, routed_keys=keys, routed_stages=2,
        grad_rows=16, grad_keys=grad_keys, grad_stages=1, grad_query_rows=min(rows, 32), grad_query_keys=keys,
        grad_query_stages=1,
        # The slopes take the shared memory that the fifth product would need.
        grad_atomic=capability in _LARGE or head_dim <= 128,
    )  # fmt: skip
