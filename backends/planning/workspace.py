"""Temporary memory: a call is cut by batch rows and key heads until a slice's partial results fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

#: Bytes of partial results at a time, where the caller sets no limit.
DEFAULT = 3 * 2**28
#: Most batch rows, and most heads, of a grid.
_GRID = 65535


class Slice(NamedTuple):
    """Batch rows b_lo ... b_hi - 1, key heads h_lo ... h_hi - 1 of `all_kv_heads`."""

    b_lo: int
    b_hi: int
    h_lo: int
    h_hi: int
    all_kv_heads: int

    def batch(self, x: Any) -> Any:
        """Return the batch rows of x, its first axis."""
        return x[self.b_lo : self.b_hi]

    def kv_heads(self, x: Any, axis: int) -> Any:
        """Return the batch rows and key heads of x."""
        return _narrow(self.batch(x), axis, self.h_lo, self.h_hi)

    def heads(self, x: Any, axis: int) -> Any:
        """Return the batch rows and query heads of x."""
        group = x.shape[axis] // self.all_kv_heads
        return _narrow(self.batch(x), axis, self.h_lo * group, self.h_hi * group)


def _narrow(x: Any, axis: int, lo: int, hi: int) -> Any:
    return x[(slice(None),) * axis + (slice(lo, hi),)]


def slice_size(batch: int, kv_heads: int, need: int, limit: int | None) -> tuple[int, int]:
    """Return most batch rows and most key heads of a slice; see `slices`."""
    room = max(1, (DEFAULT if limit is None else limit) // max(need, 1))
    heads = min(kv_heads, room)
    return min(batch, max(1, room // heads), _GRID), heads


def slices(batch: int, kv_heads: int, need: int, limit: int | None) -> Iterator[Slice]:
    """Cut a call so that a slice needs at most `limit` bytes, or is one key head of one batch row.

    Args:
        batch, kv_heads: sizes of the call.
        need: bytes for one batch row and key head.
        limit: `Options.max_workspace`.
    """
    rows, heads = slice_size(batch, kv_heads, need, limit)
    for b_lo in range(0, batch, rows):
        for h_lo in range(0, kv_heads, heads):
            yield Slice(b_lo, min(b_lo + rows, batch), h_lo, min(h_lo + heads, kv_heads), kv_heads)


def refused(least: int, most: int) -> str:
    """Return the text of a limit on temporary memory that not even one batch row and key head fits."""
    return f"needs {least} bytes of workspace for one batch row and key head, more than max_workspace = {most}"
