"""Tiles of keys, and the anchored rows that each one meets: the work of the gradients of keys and values.

A tile lies inside one chunk, so that the routes of a chunk and the padding of a segment hold for a whole tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends.planning.geometry import Geometry, Ints


class KeySizes(NamedTuple):
    """What decides the tiles and how their work is split.

    Attributes:
        keys: most keys of a tile.
        rows: rows that the kernel takes at a time.
        segment: rows beyond which the work of a tile is split over several programs, at least.
        parts: most such programs for one batch row and key head; `segment` grows until they suffice.
    """

    keys: int
    rows: int
    segment: int
    parts: int


@dataclass(frozen=True, eq=False)
class KeyTiles:
    """Tiles of keys, and the rectangles that each one meets.

    Attributes:
        tile_lo, tile_hi: (tiles,) positions, padding included.
        tile_chunk: (tiles,) the chunk.
        meeting_ptr: (tiles + 1,) meetings of tile t are entries meeting_ptr[t] ... meeting_ptr[t + 1] - 1.
        row_lo, row_full, row_hi: (meetings,) rows that see keys of the tile: row_lo ... row_full - 1 some pairs of it,
            row_full ... row_hi - 1 every valid key.
        key_lo, key_hi: (meetings,) the keys of the tile that rows of the first kind see, positions.
        banded: (meetings,) 1 where, of those, only the pairs within reach of the token window count.
        work: (tiles,) tiles of anchored rows of each tile, for one query head.
        total, longest: sum and maximum of `work`.
        count: number of tiles.
        most: most tiles of a chunk.
        partial: whether there are rows of the first kind.
    """

    tile_lo: Ints
    tile_hi: Ints
    tile_chunk: Ints
    meeting_ptr: Ints
    row_lo: Ints
    row_full: Ints
    row_hi: Ints
    key_lo: Ints
    key_hi: Ints
    banded: Ints
    work: Ints
    total: int
    longest: int
    count: int
    most: int
    partial: bool


def key_tiles(geometry: Geometry, sizes: KeySizes) -> KeyTiles:
    """Cut every chunk evenly into tiles of at most `sizes.keys` keys, and list their anchored work."""
    lo, hi, chunk = _cut(geometry.keys.chunk_lo, geometry.keys.chunk_hi, sizes.keys)
    tile, *meetings = _joined(_meetings(geometry, lo, hi))
    ptr = np.searchsorted(tile, np.arange(len(lo) + 1))
    row_lo, row_full, row_hi = meetings[:3]
    tiles = _tiles_of(row_full - row_lo, sizes.rows) + _tiles_of(row_hi - row_full, sizes.rows)
    work = np.diff(np.concatenate([[0], np.cumsum(tiles)])[ptr])
    partial = bool((row_lo < row_full).any())
    totals = (int(work.sum()), int(work.max()), len(work), int(np.bincount(chunk).max()), partial)
    columns = [np.ascontiguousarray(column, np.int32) for column in (lo, hi, chunk, ptr, *meetings, work)]
    values: list[Any] = [*columns, *totals]
    return KeyTiles(*values)


class Segments(NamedTuple):
    """How the work of key tiles is split.

    Attributes:
        segment: tiles of rows that a program takes of a tile that is split: one that has more of them.
        parts: most programs of split tiles, for one batch row and key head; 0 where no tile can be split.
    """

    segment: int
    parts: int


def segments(tiles: KeyTiles, geometry: Geometry, group: int, sizes: KeySizes) -> Segments:
    """Return the split of key tiles: `sizes.segment`, or more, so that `sizes.parts` parts suffice.

    What the routes will be is not known here: the bounds hold for any.

    Args:
        tiles: for the sizes.
        geometry: the plan's tables.
        group: query heads to a key head.
        sizes: what decides them.
    """
    routes = geometry.rows * geometry.plan.slots
    routed = tiles.most * (routes // sizes.rows + min(geometry.chunks, routes))
    work = group * (tiles.total + routed)
    # A split tile of x tiles of rows has ceil(x / segment) <= 2 x / segment parts, for x > segment.
    segment = max(1, sizes.segment // sizes.rows, -(-2 * work // sizes.parts))
    longest = group * (tiles.longest + (-(-geometry.rows // sizes.rows) if routes else 0))
    return Segments(segment, 2 * work // segment if longest > segment else 0)


def _tiles_of(rows: NDArray[Any], size: int) -> NDArray[Any]:
    return -(-rows // size)


def _cut(lo: Ints, hi: Ints, size: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Cut ranges into ceil(length / size) even parts; return first, end and the range of each part."""
    length, parts = (hi - lo).astype(np.int64), _tiles_of(hi - lo, size)
    which = np.repeat(np.arange(len(lo)), parts)
    part = np.arange(len(which)) - np.repeat(np.cumsum(parts) - parts, parts)
    first = lo[which] + length[which] * part // parts[which]
    return first, lo[which] + length[which] * (part + 1) // parts[which], which


def _meetings(geometry: Geometry, lo: NDArray[Any], hi: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return tile, row_lo, row_full, row_hi, key_lo, key_hi, banded of every rectangle and tile that share keys."""
    table = (getattr(geometry.rectangles, name) for name in ("q_lo", "q_hi", "k_lo", "k_hi", "banded"))
    q_lo, q_hi, k_lo, k_hi, band = (column.astype(np.int64) for column in table)
    begin, end = np.searchsorted(hi, k_lo, side="right"), np.searchsorted(lo, k_hi, side="left")
    which = np.repeat(np.arange(len(begin)), end - begin)
    tile = np.arange(len(which)) + np.repeat(end - np.cumsum(end - begin), end - begin)
    key_lo, key_hi = np.maximum(k_lo[which], lo[tile]), np.minimum(k_hi[which], hi[tile])
    row_lo, row_hi, banded = q_lo[which], q_hi[which], band[which]
    # Rows whose token window or past holds no key of the tile are left out.
    own_lo, own_hi, reach = key_lo - geometry.q_start, key_hi - geometry.q_start, geometry.reach
    row_lo = np.where(banded, np.maximum(row_lo, own_lo - reach), row_lo)
    row_hi = np.where(banded, np.minimum(row_hi, own_hi + reach), row_hi)
    row_lo = np.maximum(row_lo, own_lo) if geometry.token_causal else row_lo
    full = np.clip(own_hi - 1, row_lo, row_hi) if geometry.token_causal else row_lo
    whole = (key_lo == lo[tile]) & (key_hi == hi[tile]) & (banded == 0)
    row_full = np.where(whole, full, row_hi)
    kept = row_lo < row_hi
    return tuple(column[kept] for column in (tile, row_lo, row_full, row_hi, key_lo, key_hi, banded))


def _joined(meetings: tuple[NDArray[Any], ...]) -> list[NDArray[Any]]:
    """Sort meetings by tile, and join those of one tile whose fully seen rows follow each other."""
    tile, row_lo, row_full, row_hi, *_ = meetings
    order = np.lexsort((row_lo, row_full == row_hi, tile))
    tile, row_lo, row_full, row_hi, *rest = (column[order] for column in meetings)
    follows = (tile[1:] == tile[:-1]) & (row_hi[:-1] == row_lo[1:]) & (row_full[1:] == row_lo[1:])
    follows &= (row_full[:-1] < row_hi[:-1]) & (row_full[1:] < row_hi[1:])
    first = np.flatnonzero(np.concatenate([[True], ~follows])[: len(tile)])
    last = np.append(first[1:], len(tile))[: len(first)] - 1
    return [tile[first], row_lo[first], row_full[first], row_hi[last], *(column[first] for column in rest)]
