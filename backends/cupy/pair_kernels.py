"""The kernels of attended pairs as they are compiled: from the config, fitted to head_dims and dtype."""

from __future__ import annotations

from sparsemoc.backends.cupy.config import CupyConfig
from sparsemoc.backends.cupy.machine import Kernel, kernel
from sparsemoc.backends.cupy.routing_tiles import ELEMENTS
from sparsemoc.backends.cupy.shared import head_block, tile_bytes

#: Bytes of each dtype.
SIZES = {"float16": 2, "bfloat16": 2, "float32": 4}
#: Bytes that move together.
VECTOR = 16
#: From natural logarithms to powers of two.
LOG2_E = 1.4426950408889634
#: bfloat16 pieces that float32 products take, see fragments.cuh.
PIECES = {"ieee": 3, "tf32": 2}
#: Bytes of shared memory in which the warps of a block tell each other of the work ahead: NOTES of softmax.cuh.
NOTES = 128
#: Of the kernels of merge.cu: one library holds them both.
MERGE_THREADS = 128


def anchors_kernel(dtype: str, head_dim: int, v_head_dim: int, precision: str, config: CupyConfig) -> Kernel:
    """Return the kernel of anchors.cu for a dtype, head_dims and tile sizes."""
    rows, keys, warps = config.anchor_rows, config.anchor_keys, config.anchor_warps
    constants = pair_constants(dtype, head_dim, v_head_dim, precision, keys)
    shared = _bytes(dtype, head_dim, v_head_dim, rows, keys) + NOTES
    return kernel(
        "anchors", "attend_anchors", threads=32 * warps, shared=shared, blocks_per_sm=config.anchor_blocks,
        WARP_ROW_TILES=rows // (16 * warps), **constants,
    )  # fmt: skip


def routed_kernel(dtype: str, head_dim: int, v_head_dim: int, precision: str, config: CupyConfig, stay: bool) -> Kernel:
    """Return the kernel of routed.cu for a dtype, head_dims and tile sizes.

    `stay` says whether every chunk fits into a tile of keys, of which no anchor holds a part.
    """
    rows, keys, warps = config.routed_rows, config.routed_keys, config.routed_warps
    constants = pair_constants(dtype, head_dim, v_head_dim, precision, keys)
    shared = _bytes(dtype, head_dim, v_head_dim, rows, keys) + NOTES + 8 * rows  # entries, and their rows
    return kernel(
        "routed", "attend_routed", threads=32 * warps, shared=shared, blocks_per_sm=config.routed_blocks,
        WARP_ROW_TILES=rows // (16 * warps), KEYS_STAY=int(stay), **constants,
    )  # fmt: skip


def pair_constants(dtype: str, head_dim: int, v_head_dim: int, precision: str, keys: int) -> dict[str, str | int]:
    """Return the constants that the kernels of attended pairs share."""
    return {
        "ELEMENT": ELEMENTS[dtype], "HEAD_BLOCK": head_block(head_dim), "VALUE_BLOCK": head_block(v_head_dim),
        "BLOCK_KEYS": keys, "PIECES_OF_FLOAT": PIECES[precision] if dtype == "float32" else 1,
    }  # fmt: skip


def _bytes(dtype: str, head_dim: int, v_head_dim: int, rows: int, keys: int) -> int:
    """Return the bytes of a tile of queries, one of keys and one of values."""
    head, value, size = head_block(head_dim), head_block(v_head_dim), SIZES[dtype]
    return tile_bytes(rows, max(head, value), size) + tile_bytes(keys, head, size) + tile_bytes(keys, value, size)


def vector_width(dim: int, dtype: str) -> int:
    """Return a number of columns rounded up to whole vectors."""
    columns = VECTOR // SIZES[dtype]
    return -(-dim // columns) * columns


def merge_kernel(dtype: str, v_head_dim: int) -> Kernel:
    """Return the kernel of merge.cu that merges."""
    return _merging("merge", dtype, v_head_dim)


def clear_kernel(dtype: str, v_head_dim: int) -> Kernel:
    """Return the kernel of merge.cu that says of places that nothing was written there."""
    return _merging("clear_places", dtype, v_head_dim)


def merged_rows(dtype: str, v_head_dim: int) -> int:
    """Return the rows that a block merges."""
    return MERGE_THREADS * VECTOR // (head_block(v_head_dim) * SIZES[dtype])


def _merging(name: str, dtype: str, v_head_dim: int) -> Kernel:
    return kernel("merge", name, threads=MERGE_THREADS, ELEMENT=ELEMENTS[dtype], VALUE_BLOCK=head_block(v_head_dim))
