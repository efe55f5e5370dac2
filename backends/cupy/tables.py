"""The tables of a plan where its kernels read them, made once and kept; and where the valid tokens of a call end."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends.cupy.candidates import candidates
from sparsemoc.backends.cupy.machine import Machine, kernel
from sparsemoc.backends.planning.ends import Ends
from sparsemoc.backends.planning.geometry import Geometry, Keys, Runs, Units, geometry
from sparsemoc.backends.planning.key_tiles import KeySizes, KeyTiles, key_tiles
from sparsemoc.backends.planning.query_tiles import QueryTiles, Sizes, query_tiles
from sparsemoc.backends.planning.reach import Candidates, Near, envelope, near
from sparsemoc.backends.protocol import Array
from sparsemoc.spec.philox import poisson_table
from sparsemoc.spec.plan import Plan

FIND_ENDS = kernel("candidates", "find_ends")


def upload(tables: Any, machine: Machine) -> Any:
    """Return a dataclass of tables with arrays of a machine in place of NumPy's."""
    moved = {
        field.name: machine.upload(value) if isinstance(value, np.ndarray) else value
        for field in fields(tables)
        for value in (getattr(tables, field.name),)
    }
    return type(tables)(**moved)


@dataclass(frozen=True, eq=False)
class DeviceTables:
    """A plan's tables where the kernels read them.

    Attributes:
        geometry: all of them on the host.
        keys, runs, units: those of `geometry` as arrays of `machine`.
        run_stop: int32 (runs,), the chunk number after the last of a run's sample; `runs.run_base` holds the first.
        near: the chunks that token windows may reach, likewise.
        machine: where the arrays are.
        unpadded: the ends of a call without padding.
        shown: its candidates.
        envelopes: those made so far, see `envelope`.
    """

    geometry: Geometry
    keys: Keys
    runs: Runs
    units: Units
    run_stop: Array
    near: Near
    machine: Machine
    unpadded: Ends
    shown: Candidates
    envelopes: dict[tuple[int, int, bool], Array] = field(default_factory=dict, repr=False)

    @property
    def run_of_row(self) -> Array | None:
        """The run of each row where chunk numbers restart, in packed batches; None where they do not."""
        return self.runs.run_of_row if self.geometry.plan.packed else None

    def candidates(self, ends: Ends) -> Candidates:
        """Return the candidates of a call: those of the plan, or, padded, those of its lengths."""
        if not ends.padded:
            return self.shown
        return candidates(self.geometry, self.keys, self.runs, self.near, ends.stops, self.machine)

    def envelope(self, units: int, chunks: int, *, local: bool = False) -> Array:
        """Return the chunks that each tile of `units` routing units may take, int32 (tiles, 2) first and end.

        The first is rounded down to a multiple of `chunks`. `local` counts from the first chunk of the sample.
        """
        key = units, chunks, local
        if key not in self.envelopes:
            self.envelopes[key] = self.machine.upload(envelope(self.geometry, *key))
        return self.envelopes[key]


@lru_cache(maxsize=64)
def device_tables(plan: Plan, padded: bool, machine: Machine) -> DeviceTables:
    """Return the tables of a plan on a machine; `padded` says whether the call has key_lengths.

    The first call for a plan copies them there and waits for it, so that any stream may read them from then on; it
    cannot be captured in a CUDA graph. Later calls do neither.
    """
    host = geometry(plan, padded)
    keys, runs, units, reached = (upload(x, machine) for x in (host.keys, host.runs, host.units, near(host)))
    segment_ends = machine.upload(host.keys.segment_lo + host.keys.segment_tokens)
    unpadded = Ends(keys.chunk_hi.reshape(1, -1), segment_ends.reshape(1, -1), 0, 0, False)
    shown = candidates(host, keys, runs, reached, unpadded.stops, machine)
    # Kept for calls on any stream: what this one has begun must be there.
    machine.copy_to_host(shown.bits.reshape(-1)[:1]).wait()
    run_stop = machine.upload(_run_stop(host))
    return DeviceTables(host, keys, runs, units, run_stop, reached, machine, unpadded, shown)


def _run_stop(host: Geometry) -> NDArray[np.int32]:
    """Return for each run the chunk number after the last of its sample."""
    ends = np.cumsum([sample.chunks for sample in host.plan.samples])
    return ends[np.searchsorted(ends, host.runs.run_base, side="right")].astype(np.int32)


def ends_of(tables: DeviceTables, key_lengths: Array | None) -> Ends:
    """Return the ends for a call, made on the device without waiting for it.

    Args:
        tables: the plan's tables.
        key_lengths: int32 (batch, segments), packed (samples, most segments), of the tables' machine; values clamp to
            [0, tokens of the segment]. None for no padding.
    """
    if key_lengths is None:
        return tables.unpadded
    host, machine = tables.geometry, tables.machine
    rows = 1 if host.plan.packed else key_lengths.shape[0]
    chunks, segments = host.chunks, len(host.keys.segment_lo)
    ends, stops = machine.empty((rows, segments), "int32"), machine.empty((rows, chunks), "int32")
    keys = {name: getattr(tables.keys, name) for name in ("chunk_lo", "chunk_hi", "chunk_segment")}
    own = {name: getattr(tables.keys, name) for name in ("segment_entry", "segment_lo", "segment_tokens")}
    machine.launch(
        FIND_ENDS, (-(-max(segments, chunks) // FIND_ENDS.threads), 1, rows),
        key_lengths=machine.contiguous(key_lengths), **own, **keys, ends=ends, stops=stops,
        lengths=key_lengths.shape[0] * key_lengths.shape[1] // rows, segments=segments, chunks=chunks,
    )  # fmt: skip
    stride, segment_stride = (0, 0) if rows == 1 else (chunks, segments)
    return Ends(stops, ends, stride, segment_stride, True)


@lru_cache(maxsize=64)
def device_query_tiles(tables: DeviceTables, sizes: Sizes, least: int) -> QueryTiles:
    """Return `query_tiles` on the machine of `tables`, made once; the first call waits for the copy."""
    tiles: QueryTiles = upload(query_tiles(tables.geometry, sizes, least), tables.machine)
    return tiles


@lru_cache(maxsize=64)
def device_key_tiles(tables: DeviceTables, sizes: KeySizes) -> KeyTiles:
    """Return `key_tiles` on the machine of `tables`, made once; the first call waits for the copy."""
    tiles: KeyTiles = upload(key_tiles(tables.geometry, sizes), tables.machine)
    return tiles


@lru_cache(maxsize=256)
def numbers(values: tuple[int, ...], machine: Machine) -> Array:
    """Return a few numbers as int32 on a machine: kept there, for a copy from the host would make every call wait."""
    return machine.upload(np.array(values, np.int32))


@lru_cache(maxsize=256)
def poisson_thresholds(into: float, into_max: int, machine: Machine) -> Array:
    """Return `poisson_table(into, into_max)` as int64 on a machine, kept there; its entries are at most 2**32."""
    return machine.upload(poisson_table(into, into_max).astype(np.int64))
