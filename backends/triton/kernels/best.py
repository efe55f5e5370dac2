"""A running list of the best chunks of each unit, as packed int64 keys: the higher key is the better chunk.

A key is rank << 32 | (chunk ^ LAST): keys are unique, and ties of the rank go to the lower chunk, for chunk ^ LAST is
LAST - chunk. A free slot holds the lowest rank and its own number, below every key of a chunk; a slot that is never to
be filled holds CLOSED.
"""

from __future__ import annotations

import triton
import triton.language as tl

LAST = tl.constexpr(2**31 - 1)
#: Below every key, and not above any free slot: what is no candidate.
NOTHING = tl.constexpr(-(2**63))
CLOSED = tl.constexpr(2**63 - 1)
#: Low words above this are of chunks, those at or below it of free slots; that of CLOSED is -1.
_HALF = tl.constexpr(2**30)


@triton.jit
def packed(rank, chunk):
    """Return the keys of int32 ranks (M, N) and chunks (M, N) or (1, N)."""
    return (rank.to(tl.int64) << 32) | (chunk ^ LAST).to(tl.int64)


@triton.jit
def open_list(slot, first, count):
    """Return (M, N) keys with the slots first ... first + count - 1 free and all others closed. count: int32 (M,)."""
    free = (slot >= first)[None, :] & (slot[None, :] < first + count[:, None])
    return tl.where(free, slot.to(tl.int64)[None, :] + NOTHING, CLOSED)


@triton.jit
def keep_best(kept, offered):
    """Return the list (M, K) after the keys (M, N) were offered to it: each better one takes the place of the worst."""
    best, worst = tl.max(offered, axis=1), tl.min(kept, axis=1)
    while tl.max((best > worst).to(tl.int32), axis=0) > 0:
        place = (best > worst)[:, None] & (kept == worst[:, None])
        kept = tl.where(place, best[:, None], kept)
        # Where `best` was not better nothing left of its row is either: it may go all the same.
        offered = tl.where(offered == best[:, None], NOTHING, offered)
        best, worst = tl.max(offered, axis=1), tl.min(kept, axis=1)
    return kept


@triton.jit
def chunks_of(kept):
    """Return the chunks of a list, int32, LAST in slots without one."""
    low = kept.to(tl.int32)
    return tl.where(low > _HALF, low ^ LAST, LAST)


@triton.jit
def write_rows(selected, chunks, row, row_hi, rows, slot, slots, BLOCKS: tl.constexpr):
    """Write the chunks of each unit, ascending, -1 beyond them, to its rows; to rows that are no query, -1.

    Args:
        selected: int32 (all rows, slots), of one batch row and head.
        chunks: int32 (M, K), in any order, LAST where there is none.
        row, row_hi, rows: int32 (M,), first row of each unit, end of the valid ones, and how many there are in all.
        slot: int32 (K,), 0 ... K - 1; slots: how many are in use.
    """
    ascending = tl.sort(chunks, dim=1)
    value = tl.where(ascending == LAST, -1, ascending)
    place = selected + row.to(tl.int64)[:, None] * slots + slot[None, :]
    used = (slot < slots)[None, :]
    if BLOCKS:
        for member in range(tl.max(rows, axis=0)):
            query = (row + member < row_hi)[:, None]
            tl.store(place + member * slots, tl.where(query, value, -1), mask=used & (member < rows)[:, None])
    else:
        tl.store(place, value, mask=used & (rows > 0)[:, None])
