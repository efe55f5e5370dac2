"""The tunables of the CUDA kernels and their defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class CupyConfig:
    """Tile sizes and warps of each kernel. None depends on batch or heads: results do not either.

    Args:
        anchor_rows, anchor_keys: most query rows to a block of the anchors, and keys taken at a time.
        anchor_warps: warps that share the rows; each takes 16 or 32.
        anchor_blocks: blocks whose registers a multiprocessor must hold.
        anchor_split: keys beyond which a tile of anchors is split over several blocks, about.
        anchor_union: `Block(n)` units of at least this many queries attend to their chosen chunks query-major.
        routed_rows, routed_keys, routed_warps, routed_blocks: the same of the routed pairs; rows that chose one chunk.
        routed_span: groups of rows that pass by a chunk that fits into one tile of keys; longer chunks pass by one.
        pool_warps: warps that add up the keys of a chunk, and the queries of a unit.
        route_warps: warps of 16 routing units each that share a tile of centroids.
        route_chunks: centroids to a tile, 16 or 32.
        index_rows: least rows to a tile of the chunk-major index.
    """

    anchor_rows: int = 128
    anchor_keys: int = 64
    anchor_warps: int = 4
    anchor_blocks: int = 1
    anchor_split: int = 16384
    anchor_union: int = 64
    routed_rows: int = 128
    routed_keys: int = 64
    routed_warps: int = 4
    routed_blocks: int = 1
    routed_span: int = 8
    pool_warps: int = 8
    route_warps: int = 4
    route_chunks: int = 32
    index_rows: int = 512


#: Compute capability of the CPU that stands in for a GPU.
EMULATED = 0


def default_config(head_dim: int, dtype: str, capability: int) -> CupyConfig:
    """Return the config for the larger of the two head_dims, a dtype name, and a GPU, for example 90 for sm_90.

    Tiles are the largest of those tried whose accumulators stay in registers, by what the compiler says of every
    architecture: `python -m bench.nvrtc` repeats it. What is fastest only a GPU can tell. The CPU that stands in for a
    GPU takes tiles so small that problems of a test have several of each kind.
    """
    if capability == EMULATED:
        return CupyConfig(
            anchor_rows=32, anchor_keys=16, anchor_warps=2, anchor_split=64, anchor_union=32, routed_rows=32,
            routed_keys=16, routed_warps=2, routed_span=2, pool_warps=2, route_warps=2, route_chunks=16, index_rows=32,
        )  # fmt: skip
    wide = CupyConfig() if head_dim <= 128 else _tiles(64, 32)
    if dtype == "float32":
        # An operand is made of three pieces, whose registers come on top of the accumulators.
        return _tiles(64, 32) if head_dim <= 128 else _tiles(64, 16)
    return wide


def _tiles(rows: int, keys: int) -> CupyConfig:
    return replace(CupyConfig(), anchor_rows=rows, anchor_keys=keys, routed_rows=rows, routed_keys=keys)
