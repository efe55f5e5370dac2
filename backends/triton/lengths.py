"""Padding, applied on the device: where the valid tokens of each chunk and each segment end."""

from __future__ import annotations

from typing import Any

from sparsemoc.backends.planning.ends import Ends
from sparsemoc.backends.planning.geometry import Geometry, Keys
from sparsemoc.backends.triton.library import library_of


def ends_of(geometry: Geometry, keys: Keys, key_lengths: Any) -> Ends:
    """Return the ends for a call, by operations on the device of `keys`, without waiting for it.

    Args:
        geometry: the tables on the host.
        keys: its `keys` on the device.
        key_lengths: int32 (batch, segments), packed (samples, most segments), on the same device; None for no padding.
    """
    if key_lengths is None:
        return Ends(keys.chunk_hi[None], (keys.segment_lo + keys.segment_tokens)[None], 0, 0, False)
    rows = 1 if geometry.plan.packed else key_lengths.shape[0]
    entry: Any = keys.segment_entry
    segment: Any = keys.chunk_segment
    flat = key_lengths.to(library_of(key_lengths).int32).reshape(rows, -1)[:, entry.long()]
    ends: Any = keys.segment_lo + flat.clamp(min=0).minimum(keys.segment_tokens)
    stops = ends[:, segment.long()].maximum(keys.chunk_lo).minimum(keys.chunk_hi)
    stride, segment_stride = (0, 0) if rows == 1 else (stops.shape[1], ends.shape[1])
    return Ends(stops.contiguous(), ends.contiguous(), stride, segment_stride, True)
