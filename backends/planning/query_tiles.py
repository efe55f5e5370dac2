"""The anchors as work for the query-major kernel: tiles of rows, their ranges of keys, and the places of results.

Tiles depend on one sample and the tile sizes alone: never on batch, heads or the other samples of a packed batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends.planning.geometry import Geometry, Ints

#: Flags of an entry; the kernel has the same.
FULL, BANDED = 1, 2


class Sizes(NamedTuple):
    """What decides the tiles.

    Attributes:
        rows: most rows of a tile.
        keys: keys that the kernel takes at a time.
        split: most keys of an item, about.
        union: whether the rows of a tile must lie in one routing unit.
    """

    rows: int
    keys: int
    split: int
    union: bool


@dataclass(frozen=True)
class Provided:
    """A rectangle that a provider attends: key positions and rows; its row r goes to place shift + r."""

    k_lo: int
    k_hi: int
    q_lo: int
    q_hi: int
    shift: int


@dataclass(frozen=True, eq=False)
class QueryTiles:
    """Tables of the anchors' kernels and of the merge, int32.

    Attributes:
        items: (items, 6) work of one program: first row, rows, first entry, end of entries, shift, and 1 where it
            also attends to the chunks that its routing unit chose. The result of row r goes to place shift + r.
        entries: (entries, 6) ranges of keys: k_lo, k_hi, q_lo, q_hi, segment, flags. Rows q_lo ... q_hi - 1 see
            positions k_lo ... k_hi - 1 of a segment, less what band and causality take; FULL: the whole tile sees all.
        tiles: (tiles, 4) first row, rows, first part, end of parts. Tiles cover every row once.
        parts: (parts,) shifts of the results that the rows of a tile have, in the order of merging.
        places: number of places.
        provided: rectangles that a provider attends.
    """

    items: Ints
    entries: Ints
    tiles: Ints
    parts: Ints
    places: int
    provided: tuple[Provided, ...]


class _Range(NamedTuple):
    k_lo: int
    k_hi: int
    q_lo: int
    q_hi: int
    segment: int
    flags: int


def query_tiles(geometry: Geometry, sizes: Sizes, least: int = 0) -> QueryTiles:
    """Cut the anchors of a plan into tiles and items.

    Args:
        geometry: the plan's tables.
        sizes: what decides the tiles.
        least: pairs from which on an unmasked rectangle goes to a provider; 0 for none.
    """
    table = _rectangles(geometry)
    given = _provided(geometry, table, least)
    own, work = table[~given], _Work()
    provided = tuple(
        Provided(k_lo, k_hi, q_lo, q_hi, work.place(q_lo, q_hi)) for k_lo, k_hi, q_lo, q_hi in table[given, :4].tolist()
    )
    bounds = np.unique(own[:, 2:4])
    for lo, hi in pairwise(_cuts(geometry, sizes, table[given, 2:4])):
        for row, end in _tiles(lo, hi, bounds, sizes.rows):
            meeting = own[(own[:, 2] < end) & (own[:, 3] > row)]
            ranges = [part for entry in meeting.tolist() for part in _ranges(geometry, _Range(*entry), row, end, sizes)]
            shifts = [one.shift for one in provided if one.q_lo <= row < one.q_hi]
            work.add(row, end, shifts, list(_items(ranges, sizes)) or ([[]] if sizes.union else []), sizes.union)
    return work.tables(provided)


def _rectangles(geometry: Geometry) -> NDArray[np.int64]:
    """Return the rectangles as rows of a `_Range`."""
    columns = [getattr(geometry.rectangles, name) for name in ("k_lo", "k_hi", "q_lo", "q_hi", "segment")]
    return np.stack([*columns, geometry.rectangles.banded * BANDED], 1).astype(np.int64)


def _provided(geometry: Geometry, table: NDArray[np.int64], least: int) -> NDArray[np.bool_]:
    """Return which rectangles a provider takes: large, not banded, not cut by causality."""
    k_lo, k_hi, q_lo, q_hi, _, flags = table.T
    large = (q_hi - q_lo) * (k_hi - k_lo) >= max(least, 1)
    past = k_hi <= q_lo + geometry.q_start + 1 if geometry.token_causal else np.ones(len(table), bool)
    found: NDArray[np.bool_] = large & past & (flags == 0) & (least > 0)
    return found


def _cuts(geometry: Geometry, sizes: Sizes, provided: NDArray[np.int64]) -> list[int]:
    """Return the rows at which a tile must end: of samples, of provided rectangles, of units that share routes."""
    plan, cuts = geometry.plan, [np.array([0, geometry.rows]), provided.ravel()]
    if plan.packed:
        cuts.append(np.cumsum([stream.tokens for stream in plan.streams]))
    if sizes.union:
        cuts.append(geometry.units.unit_row)
    rows: list[int] = np.unique(np.concatenate(cuts)).tolist()
    return rows


def _tiles(lo: int, hi: int, bounds: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Cut rows lo ... hi - 1 into tiles that end at a bound of a rectangle where one lies in their second half."""
    while lo < hi:
        end = min(lo + most, hi)
        if end < hi:
            last = int(np.searchsorted(bounds, end, side="right")) - 1
            if last >= 0 and bounds[last] >= lo + most // 2:
                end = int(bounds[last])
        yield lo, end
        lo = end


def _ranges(geometry: Geometry, whole: _Range, row: int, end: int, sizes: Sizes) -> Iterator[_Range]:
    """Cut what rows row ... end - 1 see of a rectangle into the middle that all of them see, and the rest.

    Cuts are whole key tiles from the first key, so that they cost no further tile.
    """
    q_lo, q_hi = max(whole.q_lo, row), min(whole.q_hi, end)
    first, last = q_lo + geometry.q_start, q_hi - 1 + geometry.q_start
    lo, hi = full_lo, full_hi = whole.k_lo, whole.k_hi
    if whole.flags & BANDED:
        lo, hi = max(lo, first - geometry.reach), min(hi, last + geometry.reach + 1)
        full_lo, full_hi = max(lo, last - geometry.reach), min(hi, first + geometry.reach + 1)
    if geometry.token_causal:
        hi, full_hi = min(hi, last + 1), min(full_hi, first + 1)
    full_lo = lo - (lo - full_lo) // sizes.keys * sizes.keys
    if full_hi < hi:
        full_hi = full_lo + (full_hi - full_lo) // sizes.keys * sizes.keys
    if (q_lo, q_hi) != (row, end) or full_lo >= full_hi:
        full_lo = full_hi = lo
    parts = ((lo, full_lo, whole.flags), (full_lo, full_hi, whole.flags | FULL), (full_hi, hi, whole.flags))
    for k_lo, k_hi, flags in parts:
        if k_lo < k_hi:
            yield _Range(k_lo, k_hi, q_lo, q_hi, whole.segment, flags)


def _items(ranges: list[_Range], sizes: Sizes) -> Iterator[list[_Range]]:
    """Deal the ranges of a tile out to items of nearly equal numbers of key tiles."""
    total = sum(-(-(one.k_hi - one.k_lo) // sizes.keys) for one in ranges)
    count = -(-total * sizes.keys // sizes.split)
    room = most = -(-total // max(count, 1)) * sizes.keys
    item: list[_Range] = []
    for one in ranges:
        while one.k_lo < one.k_hi:
            stop = min(one.k_hi, one.k_lo + room)
            item.append(one._replace(k_hi=stop))
            room -= -(-(stop - one.k_lo) // sizes.keys) * sizes.keys
            one = one._replace(k_lo=stop)
            if room == 0:
                yield item
                item, room = [], most
    if item:
        yield item


class _Work:
    """The tables while they grow."""

    def __init__(self) -> None:
        self.places = 0
        self.items: list[tuple[int, ...]] = []
        self.entries: list[_Range] = []
        self.tiles: list[tuple[int, ...]] = []
        self.parts: list[int] = []

    def place(self, row: int, end: int) -> int:
        """Reserve places for rows row ... end - 1 and return their shift."""
        self.places += end - row
        return self.places - end

    def add(self, row: int, end: int, shifts: list[int], items: list[list[_Range]], union: bool) -> None:
        """Add a tile with the results that providers give it and its own items."""
        first = len(self.parts)
        self.parts += shifts
        for number, ranges in enumerate(items):
            shift, entry = self.place(row, end), len(self.entries)
            self.entries += ranges
            self.items.append((row, end - row, entry, len(self.entries), shift, int(union and number == 0)))
            self.parts.append(shift)
        self.tiles.append((row, end - row, first, len(self.parts)))

    def tables(self, provided: tuple[Provided, ...]) -> QueryTiles:
        """Return the tables, the longest items first: what starts last must not be what takes longest."""
        entries = _table(self.entries, 6)
        items = _table(self.items, 6)
        keys = np.concatenate([[0], np.cumsum(entries[:, 1] - entries[:, 0], dtype=np.int64)])
        order = np.argsort(keys[items[:, 2]] - keys[items[:, 3]], kind="stable")
        return QueryTiles(
            np.ascontiguousarray(items[order]), entries, _table(self.tiles, 4), np.array(self.parts, np.int32),
            self.places, provided,
        )  # fmt: skip


def _table(rows: list[Any], width: int) -> Ints:
    return np.array(rows, np.int32).reshape(-1, width)
