"""Sizes in shared memory, by the formulas of tiles.cuh."""

from __future__ import annotations

#: What each row of a tile is followed by: rows then start in different banks, and ldmatrix reads eight at a time.
ROW_PADDING = 16
#: Widths of tiles that rows are padded to.
HEAD_BLOCKS = (64, 128, 256)


def tile_bytes(rows: int, columns: int, size: int) -> int:
    """Return the bytes of a tile of `rows` x `columns` elements of `size` bytes: rows * (columns * size + 16)."""
    return rows * (columns * size + ROW_PADDING)


def head_block(head_dim: int) -> int:
    """Return the width of a tile of rows: the least that holds head_dim."""
    return next(block for block in HEAD_BLOCKS if head_dim <= block)
