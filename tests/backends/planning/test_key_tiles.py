"""The work of the gradients of keys: every anchored pair once."""

from __future__ import annotations

from typing import Any

import numpy as np

import sparsemoc as moc
from sparsemoc.backends.planning.geometry import Geometry, geometry
from sparsemoc.backends.planning.key_tiles import KeySizes, KeyTiles, key_tiles
from sparsemoc.spec.anchors import First, Window
from sparsemoc.spec.plan import plan

STREAM = moc.Stream.multishot(shots=3, frames=2, height=2, width=3, caption=3, prompt=5)


def test_work_of_key_tiles_is_every_anchored_pair() -> None:
    """Each pair of a rectangle lies in one meeting, and full rows see whole tiles."""
    for causal in ("none", "token"):
        anchors = (Window(3, unit="token"), First(5, unit="token"), "text")
        spec = moc.RoutingSpec(chunks=moc.Chunks(size=7), anchors=anchors, causal=causal)
        tables = geometry(plan(spec, STREAM, q_tokens=40), False)
        tiles = key_tiles(tables, KeySizes(keys=4, rows=16, segment=64, parts=8))
        assert (anchored(tables) == met(tables, tiles)).all()


def anchored(tables: Geometry) -> Any:
    sample = tables.plan.samples[0]
    pairs = np.zeros((tables.rows, sample.k_tokens), np.int64)
    for row in range(tables.rows):
        pairs[row, sample.anchors(row + tables.q_start)] = 1
    return pairs


def met(tables: Geometry, tiles: KeyTiles) -> Any:
    pairs = np.zeros((tables.rows, int(tables.keys.chunk_hi[-1])), np.int64)
    row, key = np.arange(tables.rows)[:, None], np.arange(pairs.shape[1])[None, :]
    distance = key - row - tables.q_start
    for tile in range(tiles.count):
        for m in range(tiles.meeting_ptr[tile], tiles.meeting_ptr[tile + 1]):
            some = (row >= tiles.row_lo[m]) & (row < tiles.row_full[m])
            some = some & (key >= tiles.key_lo[m]) & (key < tiles.key_hi[m])
            some &= (abs(distance) <= tables.reach) | (not tiles.banded[m])
            some &= (distance <= 0) | (not tables.token_causal)
            full = (row >= tiles.row_full[m]) & (row < tiles.row_hi[m])
            pairs += some + (full & (key >= tiles.tile_lo[tile]) & (key < tiles.tile_hi[tile]))
    return pairs
