"""Which arrays each kernel writes to, for libraries whose arrays do not change.

In the signature of a kernel, arrays that it writes to and does not read follow all others: jax-triton hands a kernel
its inputs before its outputs, whatever their places.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Name of a kernel -> its arguments that it writes to. Some it also reads: they are added to or rewritten.
WRITTEN = {
    "anchor_query_grads": ("dq_parts",),
    "attend_anchors": ("out", "lse"),
    "attend_routed": ("out", "lse"),
    "candidates_kernel": ("bits", "first", "last"),
    "count_kernel": ("counts",),
    "drop_kernel": ("selected",),
    "grads": ("dq", "dk", "dv", "dk_parts", "dv_parts"),
    "join_query_grads": ("dq",),
    "join_segments": ("target",),
    "merge": ("out", "lse"),
    "place_kernel": ("starts", "entries"),
    "pool_kernel": ("centroids",),
    "route_kernel": ("selected",),
    "routed_query_grads": ("dq_parts",),
    "row_constants": ("shift", "delta"),
    "split_kernel": ("planes",),
}


def written(name: str, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the arguments that a launch writes to: `grads` adds to dq where it is told to."""
    found = WRITTEN[name]
    return found[1:] if name == "grads" and not arguments["ADD_DQ"] else found
