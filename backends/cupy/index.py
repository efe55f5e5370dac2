"""The chunk-major index of a selection, and the work that follows from the sizes of its lists."""

from __future__ import annotations

from typing import NamedTuple

from sparsemoc.backends.cupy.config import CupyConfig
from sparsemoc.backends.cupy.machine import Machine
from sparsemoc.backends.cupy.routing_tiles import index_kernel
from sparsemoc.backends.cupy.tables import DeviceTables
from sparsemoc.backends.planning.key_tiles import KeyTiles, Segments
from sparsemoc.backends.protocol import Array


class Index(NamedTuple):
    """A selection by chunk: entries ptr[b, h, c] ... ptr[b, h, c + 1] - 1 chose chunk c.

    Attributes:
        entries: int32 (batch, heads, rows * slots), row * slots + slot, ascending in each chunk; undefined from
            ptr[b, h, -1] on.
        ptr: int32 (batch, heads, chunks + 1), chunks of all samples.
        machine: whose arrays these are.
    """

    entries: Array
    ptr: Array
    machine: Machine

    def tile_ptr(self, rows: int) -> Array:
        """Return the first tile of each chunk, int32 (batch, heads, chunks + 1), for tiles of `rows` entries."""
        batch, heads, ends = self.ptr.shape
        found = self.machine.empty((batch, heads, ends), "int32")
        self.machine.launch(
            index_kernel("tile_starts"), (1, heads, batch), ptr=self.ptr, tile_ptr=found, chunks=ends - 1, rows=rows
        )
        return found


def index(tables: DeviceTables, selected: Array, config: CupyConfig, fault: Array | None) -> Index:
    """Return a selection by chunk, a stable counting sort that never waits for the device.

    Args:
        tables: the plan's tables.
        selected: int32 (batch, heads, rows, slots), contiguous.
        config: tile sizes.
        fault: where an entry that names no chunk is reported; it counts as -1.
    """
    machine, chunks = tables.machine, tables.geometry.chunks
    batch, heads, rows, slots = selected.shape
    entries = machine.empty((batch, heads, rows * slots), "int32")
    if slots == 0:
        return Index(entries, machine.zeros((batch, heads, chunks + 1), "int32"), machine)
    # As many rows to a tile as there are chunks, and the table of counts is no larger than a column of `selected`.
    tile_rows = max(config.index_rows, chunks)
    tiles = -(-rows // tile_rows)
    ptr = machine.empty((batch, heads, chunks + 1), "int32")
    places = machine.zeros((batch, heads, chunks, tiles), "int32")
    read = {
        "selected": selected, "run_of_row": tables.run_of_row, "run_base": tables.runs.run_base,
        "run_stop": tables.run_stop, "rows": rows, "tile_rows": tile_rows, "slots": slots, "chunks": chunks,
        "fault": fault,
    }  # fmt: skip
    machine.launch(index_kernel("count_entries"), (tiles, heads, batch), counts=places, **read)
    machine.launch(index_kernel("scan_counts"), (1, heads, batch), places=places, ptr=ptr, chunks=chunks, tiles=tiles)
    place = index_kernel("place_entries")
    blocks = -(-tiles // (place.threads // 32))
    machine.launch(place, (blocks, heads, batch), places=places, entries=entries, tiles=tiles, **read)
    return Index(entries, ptr, machine)


def split_ptr(tiles: KeyTiles, split: Segments, index: Index, group: int, rows: int) -> Array:
    """Return how many parts lie before each key tile, int32 (batch, kv_heads, tiles + 1), on the device.

    Args:
        tiles: on the machine of the index.
        split: how many tiles of rows a part takes of a tile that is split.
        index: the selection by chunk.
        group: query heads to a key head.
        rows: entries to a tile of rows.
    """
    batch, heads, ends = index.ptr.shape
    found = index.machine.empty((batch, heads // group, tiles.count + 1), "int32")
    index.machine.launch(
        index_kernel("split_starts"), (1, heads // group, batch), ptr=index.ptr, tile_chunk=tiles.tile_chunk,
        work=tiles.work, split_ptr=found, chunks=ends - 1, key_tiles=tiles.count, group=group, rows=rows,
        segment=split.segment,
    )  # fmt: skip
    return found
