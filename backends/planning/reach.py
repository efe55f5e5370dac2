"""Which chunks the token windows and the routing units of a tile may reach: bounds for the routing kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sparsemoc.backends.planning.geometry import Geometry, Ints
from sparsemoc.backends.protocol import Array


@dataclass(frozen=True, eq=False)
class Near:
    """The chunks that the token windows of a run may reach; of the others they cover nothing.

    Attributes:
        first: (runs,) the first such chunk.
        width: most of them for any run, 0 where there are no token windows.
    """

    first: Ints
    width: int


class Candidates(NamedTuple):
    """The candidates of every run, token windows apart, and what the windows must cover to take more away.

    Attributes:
        bits: int32 (batch or 1, runs, words) bit c % 32 of word c // 32: chunk c has a valid key that the run's static
            anchors leave out, and is routable and causal for the run.
        first, last: int32 (batch or 1, runs, near.width) positions of the first and the last such key of chunk
            near.first[run] + n.
        stride, near_stride: elements of `bits`, and of `first` and `last`, from batch row to batch row; 0 for one row.
    """

    bits: Array
    first: Array
    last: Array
    stride: int
    near_stride: int


def near(geometry: Geometry) -> Near:
    """Return the chunks within reach of the token windows of each run."""
    runs, keys = geometry.runs, geometry.keys
    if geometry.reach < 0:
        return Near(np.zeros_like(runs.run_lo), 0)
    reach = min(geometry.reach, int(keys.chunk_hi[-1]))
    first = np.searchsorted(keys.chunk_hi, runs.run_lo + geometry.q_start - reach, side="right")
    stop = np.searchsorted(keys.chunk_lo, runs.run_hi + geometry.q_start + reach, side="left")
    return Near(first.astype(np.int32), int((stop - first).max(initial=0)))


def envelope(geometry: Geometry, units: int, chunks: int, local: bool) -> Ints:
    """Return (tiles, 2): the range of chunks that a tile of `units` routing units may take, 0 and 0 for none.

    It starts at a multiple of `chunks`; `local` counts from the first chunk of the sample.
    """
    runs, table = geometry.runs, geometry.units
    shown = np.unpackbits(runs.allowed.view(np.uint8), axis=1, bitorder="little")[:, : geometry.chunks]
    shift = runs.run_base if local else np.zeros_like(runs.run_base)
    some = shown.any(axis=1)
    first = np.where(some, shown.argmax(axis=1) - shift, geometry.chunks)
    end = np.where(some, geometry.chunks - shown[:, ::-1].argmax(axis=1) - shift, 0)
    # The runs of a unit lie in one chunk, and so share what kinds and causality allow.
    tiles = np.arange(0, len(table.unit_run), units)
    first, end = (np.minimum.reduceat(first[table.unit_run], tiles), np.maximum.reduceat(end[table.unit_run], tiles))
    first = np.where(first < end, first // chunks * chunks, 0)
    return np.stack([first, np.maximum(end, first)], axis=1).astype(np.int32)
