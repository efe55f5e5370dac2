"""Keys and values as the matrix kernels read them, and the mean key of each chunk.

Panels hold keys transposed, so that a vector register runs over keys: each chunk starts a new group of `lanes` keys;
two groups make a panel (head_dim, 2 * lanes), an odd last group one of (head_dim, lanes). Rows hold them as they are,
contiguous. head_dim is padded to whole vectors with zeros.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sparsemoc.backends.numba.compiled import kernel
from sparsemoc.backends.numba.intrinsics import borrowed
from sparsemoc.backends.numba.memory import fetch_ahead, load_row
from sparsemoc.spec.sample_plan import Ints


def panel_starts(bounds: Ints, lanes: int) -> Ints:
    """Return (chunks + 1,) the first group of each chunk."""
    groups = -(-np.diff(bounds) // lanes)
    return np.concatenate([[0], np.cumsum(groups)])


@njit(nogil=True)
def _pack_panels(panels, row, source, head, code, lo, hi, groups, lanes):  # type: ignore[no-untyped-def]
    """Transpose the keys lo ... hi - 1 of a head of `source` into `groups` groups; absent keys become 0.

    The groups are those of the chunk's nominal length: what they hold depends on padding, where they lie does not.
    """
    depth = row.shape[1]
    for group in range(0, groups, 2):
        width = 2 * lanes if group + 1 < groups else lanes
        base = group * lanes * depth
        for j in range(width):
            key = lo + group * lanes + j
            if key < hi:
                fetch_ahead(source, key, head)
                load_row(row, 0, source[0, key, head], code, row.dtype.type(1))
                for column in range(depth):
                    panels[base + column * width + j] = row[0, column]
            else:
                for column in range(depth):
                    panels[base + column * width + j] = 0


@kernel
def pack_panels(worker, workers, panels, source, code, starts, stops, groups, lanes):  # type: ignore[no-untyped-def]
    """Pack a worker's share of `source` (., tokens, heads, head_dim) to `panels` (heads, groups * lanes, depth)."""
    chunks, depth = len(starts), panels.shape[2]
    panels, source, starts, stops = borrowed(panels), borrowed(source), borrowed(starts), borrowed(stops)
    row = np.empty((1, depth), panels.dtype)
    for unit in range(worker, source.shape[2] * chunks, workers):
        head, chunk = unit // chunks, unit % chunks
        place = panels[head, groups[chunk] * lanes : groups[chunk + 1] * lanes].reshape(-1)
        count = groups[chunk + 1] - groups[chunk]
        _pack_panels(place, row, source, head, code, starts[chunk], stops[chunk], count, lanes)


@kernel
def pack_rows(worker, workers, rows, source, code):  # type: ignore[no-untyped-def]
    """Copy a worker's share of `source` (., tokens, heads, head_dim) to `rows` (heads, tokens, depth)."""
    tokens, rows, source = source.shape[1], borrowed(rows), borrowed(source)
    for head in range(source.shape[2]):
        for token in range(tokens * worker // workers, tokens * (worker + 1) // workers):
            fetch_ahead(source, token, head)
            load_row(rows[head], token, source[0, token, head], code, rows.dtype.type(1))


@njit(nogil=True)
def _add_keys(few, row, source, first_head, token, code):  # type: ignore[no-untyped-def]
    """Add a token's keys, of the heads from `first_head` on, to the rows of `few` (heads, head_dim)."""
    for index in range(few.shape[0]):
        fetch_ahead(source, token, first_head + index)
        load_row(row, 0, source[0, token, first_head + index], code, row.dtype.type(1))
        for column in range(few.shape[1]):
            few[index, column] += row[0, column]


@kernel
def mean_keys(worker, workers, centroids, few, total, row, source, code, starts, stops):  # type: ignore[no-untyped-def]
    """Write the mean of each chunk's valid keys, rounded once to float32; 0 without keys.

    Sums of 32 keys are made in the type of `few` (heads at once, head_dim), and added up in float64, in `total`. Heads
    are taken at once where they lie side by side in memory: the keys of a chunk are then read in one stream.
    """
    chunks, (heads, width) = len(starts), few.shape
    few, total, row, source = borrowed(few), borrowed(total), borrowed(row), borrowed(source)
    starts, stops = borrowed(starts), borrowed(stops)
    for unit in range(worker, source.shape[2] // heads * chunks, workers):
        first_head, chunk = unit // chunks * heads, unit % chunks
        total[:] = 0
        for first in range(starts[chunk], stops[chunk], 32):
            few[:] = 0
            for token in range(first, min(first + 32, stops[chunk])):
                _add_keys(few, row, source, first_head, token, code)
            for index in range(heads):
                for column in range(width):
                    total[index, column] += few[index, column]
        count = max(stops[chunk] - starts[chunk], 1)
        for index in range(heads):
            for column in range(width):
                centroids[first_head + index, chunk, column] = np.float32(total[index, column] / count)
