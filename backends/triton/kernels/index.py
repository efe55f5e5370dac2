"""The chunk-major index of a selection: a stable counting sort of (row, slot) entries by chunk.

Counts go to (chunk, tile of rows), chunk-major: one running sum over them gives the place of every tile's first entry
of every chunk. Each tile then places its entries in order, so that the sort is stable and always comes out the same.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _entries(selected, run_of_row, run_base, row, rows, slot, slots):
    """Return the chunks that rows chose, int32 (M * K,), row by row; -1 where there is none."""
    inside = row < rows
    base = tl.load(run_base + tl.load(run_of_row + row, mask=inside, other=0))
    place = selected + row.to(tl.int64)[:, None] * slots + slot[None, :]
    chosen = tl.load(place, mask=inside[:, None] & (slot < slots)[None, :], other=-1)
    chunk = tl.where(chosen >= 0, chosen + base[:, None], -1)
    return tl.reshape(chunk, (row.shape[0] * slot.shape[0],))


@triton.jit(do_not_specialize=("rows", "tile_rows", "slots", "stride_count"))
def count_kernel(
    selected, run_of_row, run_base, counts,
    rows, tile_rows, slots, stride_count,
    STEP: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Count the entries of each chunk in a tile of tile_rows rows. Grid (tiles, heads, batch).

    Args:
        selected: int32 (batch, heads, rows, slots), contiguous.
        run_of_row, run_base: see `geometry.Runs`.
        counts: int32 (batch, heads, stride_count), zero; element 1 + chunk * tiles + tile is added to.
        STEP: rows to a step; divides tile_rows.
    """
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    list_ = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    slot = tl.arange(0, SLOTS)
    column = counts + list_ * stride_count + 1 + tile
    for start in range(tile * tile_rows, tl.minimum((tile + 1) * tile_rows, rows), STEP):
        row = start + tl.arange(0, STEP)
        chunk = _entries(selected + list_ * rows * slots, run_of_row, run_base, row, rows, slot, slots)
        tl.atomic_add(column + chunk * tiles, 1, mask=chunk >= 0, sem="relaxed")


@triton.jit(do_not_specialize=("rows", "tile_rows", "slots", "stride_count"))
def place_kernel(
    selected, run_of_row, run_base, starts, entries,
    rows, tile_rows, slots, stride_count,
    STEP: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Write the entries of a tile of tile_rows rows to their places. Grid (tiles, heads, batch).

    Args:
        selected, run_of_row, run_base: as in `count_kernel`.
        starts: int32 (batch, heads, stride_count); element chunk * tiles + tile is the place of the tile's first entry
            of the chunk, and is moved on: a place of that kind belongs to this program alone.
        entries: int32 (batch, heads, rows * slots), row * slots + slot by chunk, ascending in each.
        STEP: rows to a step; its entries are compared pairwise. Divides tile_rows.
    """
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    list_ = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    slot, number = tl.arange(0, SLOTS), tl.arange(0, STEP * SLOTS)
    column = starts + list_ * stride_count + tile
    out = entries + list_ * rows * slots
    for start in range(tile * tile_rows, tl.minimum((tile + 1) * tile_rows, rows), STEP):
        row = start + tl.arange(0, STEP)
        chunk = _entries(selected + list_ * rows * slots, run_of_row, run_base, row, rows, slot, slots)
        if STEP == 1:
            # The chunks of one row differ.
            before, after = tl.zeros_like(chunk), tl.zeros_like(chunk)
        else:
            same = chunk[:, None] == chunk[None, :]
            before = tl.sum((same & (number[None, :] < number[:, None])).to(tl.int32), axis=1)
            after = tl.sum((same & (number[None, :] > number[:, None])).to(tl.int32), axis=1)
        # Volatile: the first-level cache may hold what the step before moved on.
        place = tl.load(column + chunk * tiles, mask=chunk >= 0, other=0, volatile=True) + before
        entry = (start + number // SLOTS) * slots + number % SLOTS
        tl.store(out + place, entry, mask=chunk >= 0)
        # All have read where their chunk goes on before its last entry moves it, and see that in the next step.
        tl.debug_barrier()
        tl.store(column + chunk * tiles, place + 1, mask=(chunk >= 0) & (after == 0))
        tl.debug_barrier()
