"""Arithmetic of half-open integer ranges. A `Ranges` is sorted, disjoint, non-empty and non-adjacent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Range = tuple[int, int]
Ranges = tuple[Range, ...]


def union(pieces: Iterable[Range]) -> Ranges:
    """Return the union of any ranges; empty ones fall out, touching ones become one."""
    merged: list[Range] = []
    for lo, hi in sorted(piece for piece in pieces if piece[0] < piece[1]):
        if merged and lo <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], hi))
        else:
            merged.append((lo, hi))
    return tuple(merged)


def intersect(left: Sequence[Range], right: Sequence[Range]) -> Ranges:
    """Return what two Ranges share."""
    shared: list[Range] = []
    i = j = 0
    while i < len(left) and j < len(right):
        lo, hi = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if lo < hi:
            shared.append((lo, hi))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return tuple(shared)


def subtract(left: Sequence[Range], right: Sequence[Range]) -> Ranges:
    """Return the part of `left` outside `right`."""
    rest: list[Range] = []
    for lo, hi in left:
        for cut_lo, cut_hi in right:
            if cut_hi <= lo:
                continue
            if cut_lo >= hi:
                break
            if lo < cut_lo:
                rest.append((lo, cut_lo))
            lo = max(lo, cut_hi)
        if lo < hi:
            rest.append((lo, hi))
    return tuple(rest)
