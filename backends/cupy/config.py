"""The tunables of the CUDA kernels and their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sparsemoc.backends.cupy.grad_tiles import grad_tiles
from sparsemoc.backends.cupy.shared import head_block, tile_bytes
from sparsemoc.backends.gpus import GPUS, gpu_of


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
        grad_keys, grad_rows: keys to a block of their gradients, at most, and rows taken at a time: 16, 32 or 64.
        grad_warps: warps that share the keys; each takes 16 or 32.
        grad_stages: tiles of rows in shared memory, 1 or 2: with 2 one arrives while the other is taken.
        grad_blocks: blocks whose registers a multiprocessor must hold.
        grad_segment: rows beyond which the work of a tile of keys is split over several blocks, at least.
        grad_parts: most such blocks for one batch row and key head; grad_segment grows until they suffice.
        grad_query_rows, grad_query_keys, grad_query_warps, grad_query_blocks: as for the anchors, of the gradients of
            queries.
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
    grad_keys: int = 64
    grad_rows: int = 32
    grad_warps: int = 4
    grad_stages: int = 1
    grad_blocks: int = 1
    grad_segment: int = 16384
    grad_parts: int = 256
    grad_query_rows: int = 64
    grad_query_keys: int = 32
    grad_query_warps: int = 4
    grad_query_blocks: int = 1


#: Compute capability of the CPU that stands in for a GPU.
EMULATED = 0


def most_shared(capability: int) -> int:
    """Return the bytes of shared memory that a block may have; of the CPU that stands in, those of the largest GPU."""
    return max(gpu.shared for gpu in GPUS.values()) if capability == EMULATED else gpu_of(capability).shared


class Tiles(NamedTuple):
    """Of a kernel of pairs: rows and keys to a tile, warps, and blocks whose registers a multiprocessor must hold."""

    rows: int
    keys: int
    warps: int
    blocks: int


#: By bytes of an element and width of a row, where a block has shared memory of 160 KB or more, and where it has 99 KB.
#: Two tiles of 16 rows to a warp read the keys half as often from shared memory; eight warps of one are as many as four
#: of two where only one such block fits.
_TILES = {
    (2, 64): (Tiles(128, 64, 4, 2), Tiles(128, 64, 8, 1)),
    (2, 128): (Tiles(128, 32, 4, 2), Tiles(128, 64, 8, 1)),
    (2, 256): (Tiles(128, 64, 8, 1), Tiles(128, 16, 8, 1)),
    (4, 64): (Tiles(128, 32, 4, 2), Tiles(128, 64, 8, 1)),
    (4, 128): (Tiles(64, 32, 4, 2), Tiles(128, 16, 8, 1)),
    (4, 256): (Tiles(64, 16, 4, 1), Tiles(64, 16, 4, 1)),
}
#: Further tiles of the routed pairs, for chunks that fit into them: their keys stay, rows pass by.
_STAYING = {
    (2, 64): (Tiles(128, 128, 8, 1),),
    (2, 128): (Tiles(128, 64, 4, 2), Tiles(128, 128, 8, 1)),
    (4, 64): (Tiles(128, 64, 8, 1),),
}
#: Bytes of shared memory of a block from which on it has much, and those beside the tiles, at most.
_MUCH, _BESIDE = 160 * 1024, 2048
#: The compiler of the first Blackwell keeps no more keys of width 64 in registers where the work ahead is a list.
_BLACKWELL_ANCHORS = Tiles(128, 48, 4, 2)


def default_config(head_dim: int, dtype: str, capability: int, most_chunk: int | None = None) -> CupyConfig:
    """Return the config for head_dim, dtype and GPU.

    Tiles are the largest of those tried whose accumulators stay in registers, by what the compiler says of every
    architecture: `python -m bench.nvrtc` repeats it. What is fastest only a GPU can tell. The CPU that stands in for a
    GPU takes tiles so small that problems of a test have several of each kind.

    Args:
        head_dim: the larger of the two.
        dtype: its name.
        capability: 90 for sm_90.
        most_chunk: keys of the longest chunk: where they fit into a tile they stay there; None for any number.
    """
    if capability == EMULATED:
        return CupyConfig(
            anchor_rows=32, anchor_keys=16, anchor_warps=2, anchor_split=64, anchor_union=32, routed_rows=32,
            routed_keys=16, routed_warps=2, routed_span=2, pool_warps=2, route_warps=2, route_chunks=16, index_rows=32,
            grad_keys=32, grad_rows=16, grad_warps=2, grad_segment=64, grad_query_rows=32, grad_query_keys=16,
            grad_query_warps=2,
        )  # fmt: skip
    size, block = 4 if dtype == "float32" else 2, head_block(head_dim)
    room = most_shared(capability)
    much = room >= _MUCH
    usual = _TILES[size, block][not much]
    anchors = _BLACKWELL_ANCHORS if (size, block) == (2, 64) and much and capability >= 100 else usual
    routed = _staying((usual, *_STAYING.get((size, block), ())), size, block, room, most_chunk) or usual
    return CupyConfig(
        anchor_rows=anchors.rows, anchor_keys=anchors.keys, anchor_warps=anchors.warps, anchor_blocks=anchors.blocks,
        routed_rows=routed.rows, routed_keys=routed.keys, routed_warps=routed.warps, routed_blocks=routed.blocks,
        **grad_tiles(dtype, block, much=much),
    )  # fmt: skip


def _staying(tiles: Sequence[Tiles], size: int, block: int, room: int, most_chunk: int | None) -> Tiles | None:
    """Return the first of tiles whose keys hold a whole chunk, and that a block has shared memory for."""
    for one in tiles:
        needs = tile_bytes(one.rows + 2 * one.keys, block, size) + _BESIDE
        if most_chunk is not None and most_chunk <= one.keys and needs <= room:
            return one
    return None
