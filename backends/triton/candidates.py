"""Which chunks a run of queries may take: routable, causal, and not covered whole by its anchors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sparsemoc.backends.triton.kernels.candidates import candidates_kernel
from sparsemoc.backends.triton.lengths import Ends
from sparsemoc.backends.triton.library import kernel_on, library_of
from sparsemoc.backends.triton.tables import Geometry, Ints, Keys, Runs

#: Mask words to a program: a word is 32 chunks.
WORDS = 4
WARPS = 4


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

    bits: Any
    first: Any
    last: Any
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


def candidates(geometry: Geometry, keys: Keys, runs: Runs, reached: Near, ends: Ends) -> Candidates:
    """Return the candidates of every run for the valid keys of a call.

    Args:
        geometry: the tables on the host.
        keys, runs, reached: those that the kernel reads, on the device.
        ends: where the valid keys end, on the device.
    """
    batch, count, words = ends.stops.shape[0], *runs.allowed.shape
    library, device = library_of(runs.allowed), runs.allowed.device
    bits, first, last = (
        library.empty((batch, count, width), dtype=library.int32, device=device)
        for width in (words, reached.width, reached.width)
    )
    kernel_on(runs.allowed, candidates_kernel)[(count, -(-words // WORDS), batch)](
        keys.chunk_lo, ends.stops, runs.anchor_ptr, runs.anchor_lo, runs.anchor_hi, runs.allowed, reached.first,
        bits, first, last,
        chunks=geometry.chunks, runs=count, words=words, near=reached.width, stride_stops=ends.stride,
        WORDS=WORDS, WINDOW=geometry.reach >= 0,
        num_warps=WARPS, num_stages=1,
    )  # fmt: skip
    shared = ends.stride == 0
    return Candidates(bits, first, last, *(0, 0) if shared else (count * words, count * reached.width))
