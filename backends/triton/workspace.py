"""What the launches of attention keep between them."""

from __future__ import annotations

from typing import Any, NamedTuple

from sparsemoc.backends.triton.library import library_of

LOG2_E = 1.4426950408889634


class Partials(NamedTuple):
    """Normalised partial outputs (batch, heads, places, v_head_dim) and their base-2 lse (batch, heads, places)."""

    out: Any
    lse: Any


def empty_rows(like: Any, width: int) -> Any:
    """Return a new (batch, tokens, heads, width) tensor whose outer axes lie in memory in the order of `like`'s."""
    order = sorted(range(3), key=lambda axis: -like.stride(axis))
    library = library_of(like)
    made = library.empty([like.shape[axis] for axis in order] + [width], dtype=like.dtype, device=like.device)
    return made.permute([order.index(axis) for axis in range(3)] + [3])
