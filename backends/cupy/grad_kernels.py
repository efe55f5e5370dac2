"""The kernels of the backward as they are compiled: from the config, fitted to head_dims and dtype."""

from __future__ import annotations

from sparsemoc.backends.cupy.config import CupyConfig
from sparsemoc.backends.cupy.machine import Kernel, kernel
from sparsemoc.backends.cupy.pair_kernels import SIZES, pair_constants
from sparsemoc.backends.cupy.routing_tiles import ELEMENTS
from sparsemoc.backends.cupy.shared import head_block, tile_bytes

#: Of the kernels that only load and add.
JOIN_THREADS = 128
#: Float32 sums that move together.
SUMS = 4
#: Bytes of shared memory beside the tiles, see key_grads.cu: of a list of rows, for each row and beside; of a Place.
_ROW, _LIST, _PLACE = 12, 32, 96
#: The same of the tiles of keys ahead, see query_grads.cu.
_AHEAD = 88


def rows_kernel(dtype: str, head_dim: int, v_head_dim: int) -> Kernel:
    """Return the kernel of rows.cu."""
    block = head_block(max(head_dim, v_head_dim))
    return kernel("rows", "row_constants", threads=JOIN_THREADS, ELEMENT=ELEMENTS[dtype], WIDTH_BLOCK=block)


def rows_of_block(head_dim: int, v_head_dim: int) -> int:
    """Return the rows that a block of `rows_kernel` takes."""
    return JOIN_THREADS * 8 // head_block(max(head_dim, v_head_dim))


def dim_parts(head_dim: int, v_head_dim: int) -> int:
    """Return how many blocks share the columns of dk and dv of a tile of keys: their sums must stay in registers."""
    return 2 if head_block(max(head_dim, v_head_dim)) > 128 else 1


def key_grads_kernel(dtype: str, head_dim: int, v_head_dim: int, precision: str, config: CupyConfig) -> Kernel:
    """Return the kernel of key_grads.cu for a dtype, head_dims and tile sizes."""
    rows, keys, stages, size = config.grad_rows, config.grad_keys, config.grad_stages, SIZES[dtype]
    constants = pair_constants(dtype, head_dim, v_head_dim, precision, keys)
    columns = head_block(head_dim), head_block(v_head_dim)
    tiles = sum(tile_bytes(keys, width, size) + stages * tile_bytes(rows, width, size) for width in columns)
    return kernel(
        "key_grads", "key_grads", threads=32 * config.grad_warps, blocks_per_sm=config.grad_blocks,
        shared=tiles + (stages + 2) * (rows * _ROW + _LIST) + _PLACE, BLOCK_ROWS=rows, STAGES=stages,
        DIM_PARTS=dim_parts(head_dim, v_head_dim), **constants,
    )  # fmt: skip


def query_grads_kernel(
    name: str, dtype: str, head_dim: int, v_head_dim: int, precision: str, config: CupyConfig
) -> Kernel:
    """Return a kernel of query_grads.cu for a dtype, head_dims and tile sizes."""
    rows, keys, warps, size = config.grad_query_rows, config.grad_query_keys, config.grad_query_warps, SIZES[dtype]
    constants = pair_constants(dtype, head_dim, v_head_dim, precision, keys)
    tiles = sum(tile_bytes(rows + keys, head_block(dim), size) for dim in (head_dim, v_head_dim))
    return kernel(
        "query_grads", name, threads=32 * warps, blocks_per_sm=config.grad_query_blocks,
        shared=tiles + 16 * rows + _AHEAD,  # with constants and numbers of rows, and their places
        WARP_ROW_TILES=rows // (16 * warps), **constants,
    )  # fmt: skip


def join_kernel(name: str, dtype: str) -> Kernel:
    """Return a kernel of joins.cu."""
    return kernel("joins", name, threads=JOIN_THREADS, ELEMENT=ELEMENTS[dtype])


def sum_width(head_dim: int) -> int:
    """Return head_dim rounded up to whole vectors of float32 sums."""
    return -(-head_dim // SUMS) * SUMS
