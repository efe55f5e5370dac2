"""Where the valid tokens of a call end, on the device that holds its arrays."""

from __future__ import annotations

from typing import NamedTuple

from sparsemoc.backends.planning.workspace import Slice
from sparsemoc.backends.protocol import Array


class Ends(NamedTuple):
    """Positions up to which tokens are valid; one row for all batch rows where nothing is padded.

    Attributes:
        stops: int32 (batch or 1, chunks), end of the valid keys of each chunk; its first position where it has none.
        ends: int32 (batch or 1, segments), end of the valid tokens of each segment.
        stride: elements of `stops` from batch row to batch row, 0 for one row.
        segment_stride: the same of `ends`.
        padded: whether a call has key_lengths.
    """

    stops: Array
    ends: Array
    stride: int
    segment_stride: int
    padded: bool

    def of(self, part: Slice) -> Ends:
        """Return the ends of the batch rows of a slice; those that all rows share as they are."""
        if not self.stride:
            return self
        return self._replace(stops=part.batch(self.stops), ends=part.batch(self.ends))
