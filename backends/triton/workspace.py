"""Temporary memory: a call is cut by batch rows and key heads until a slice's partial results fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from sparsemoc.backends.triton.lengths import Ends
from sparsemoc.backends.triton.library import library_of

LOG2_E = 1.4426950408889634
#: Bytes of partial results at a time, where the caller sets no limit.
DEFAULT = 3 * 2**28
#: Most batch rows, and most heads, of a grid.
_GRID = 65535


class Partials(NamedTuple):
    """Normalised partial outputs (batch, heads, places, v_head_dim) and their base-2 lse (batch, heads, places)."""

    out: Any
    lse: Any


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

    def ends(self, ends: Ends) -> Ends:
        """Return the ends of the batch rows; those that all rows share as they are."""
        if not ends.stride:
            return ends
        return ends._replace(stops=self.batch(ends.stops), ends=self.batch(ends.ends))

    def kv_heads(self, x: Any, axis: int) -> Any:
        """Return the batch rows and key heads of x."""
        return self.batch(x).narrow(axis, self.h_lo, self.h_hi - self.h_lo)

    def heads(self, x: Any, axis: int) -> Any:
        """Return the batch rows and query heads of x."""
        group = x.shape[axis] // self.all_kv_heads
        return self.batch(x).narrow(axis, self.h_lo * group, (self.h_hi - self.h_lo) * group)


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


def empty_rows(like: Any, width: int) -> Any:
    """Return a new (batch, tokens, heads, width) tensor whose outer axes lie in memory in the order of `like`'s."""
    order = sorted(range(3), key=lambda axis: -like.stride(axis))
    library = library_of(like)
    made = library.empty([like.shape[axis] for axis in order] + [width], dtype=like.dtype, device=like.device)
    return made.permute([order.index(axis) for axis in range(3)] + [3])
