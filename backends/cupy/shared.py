"""Sizes in shared memory, by the formulas of tiles.cuh."""

from __future__ import annotations

#: What each row of a tile is followed by: rows then start in different banks, and ldmatrix reads eight at a time.
ROW_PADDING = 16


def tile_bytes(rows: int, columns: int, size: int) -> int:
    """Return the bytes of a tile of `rows` x `columns` elements of `size` bytes: rows * (columns * size + 16)."""
    return rows * (columns * size + ROW_PADDING)
