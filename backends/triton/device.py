"""The tables of a plan on one device, made once and kept."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends.planning.ends import Ends
from sparsemoc.backends.planning.geometry import Geometry, Keys, Runs, Units, geometry
from sparsemoc.backends.planning.key_tiles import KeySizes, KeyTiles, key_tiles
from sparsemoc.backends.planning.query_tiles import QueryTiles, Sizes, query_tiles
from sparsemoc.backends.planning.reach import Candidates, Near, envelope, near
from sparsemoc.backends.triton.candidates import candidates
from sparsemoc.backends.triton.lengths import ends_of
from sparsemoc.backends.triton.library import library_of
from sparsemoc.spec.philox import poisson_table
from sparsemoc.spec.plan import Plan


def placed(array: NDArray[Any], device: Any) -> Any:
    """Return a NumPy array as a tensor on a device."""
    return library_of(device).from_numpy(array).to(device)


def on_device(tables: Any, device: Any) -> Any:
    """Return a dataclass of tables with tensors on a device in place of its arrays."""
    moved = {
        field.name: placed(value, device) if isinstance(value, np.ndarray) else value
        for field in fields(tables)
        for value in (getattr(tables, field.name),)
    }
    return type(tables)(**moved)


@dataclass(frozen=True, eq=False)
class DeviceTables:
    """A plan's tables where the kernels read them.

    Attributes:
        geometry: all of them on the host.
        keys, runs, units: those of `geometry` as tensors on `device`.
        near: the chunks that token windows may reach, on the device.
        unpadded: the candidates of a call without padding; None where nothing computed can be kept from call to call.
        device: where the tensors are.
        envelopes: those made so far, see `envelope`.
    """

    geometry: Geometry
    keys: Keys
    runs: Runs
    units: Units
    near: Near
    unpadded: Candidates | None
    device: Any
    envelopes: dict[tuple[int, int, bool], Any] = field(default_factory=dict, repr=False)

    def candidates(self, ends: Ends) -> Candidates:
        """Return the candidates of a call: those of the plan, or, padded, those of its lengths."""
        if not ends.padded and self.unpadded is not None:
            return self.unpadded
        return candidates(self.geometry, self.keys, self.runs, self.near, ends)

    def envelope(self, units: int, chunks: int, *, local: bool = False) -> Any:
        """Return the chunks that each tile of `units` routing units may take, int32 (tiles, 2) first and end.

        The first is rounded down to a multiple of `chunks`. `local` counts from the first chunk of the sample.
        """
        key = units, chunks, local
        if key not in self.envelopes:
            self.envelopes[key] = placed(envelope(self.geometry, *key), self.device)
        return self.envelopes[key]


@lru_cache(maxsize=64)
def device_tables(plan: Plan, padded: bool, device: Any) -> DeviceTables:
    """Return the tables of a plan on a device; `padded` says whether the call has key_lengths.

    The first call for a plan copies them there and waits for it, so that any stream may read them from then on; it
    cannot be captured in a CUDA graph. Later calls do neither.
    """
    host = geometry(plan, padded)
    keys, runs, units = (on_device(tables, device) for tables in (host.keys, host.runs, host.units))
    reached = on_device(near(host), device)
    if device.type == "traced":
        return DeviceTables(host, keys, runs, units, reached, None, device)
    unpadded = candidates(host, keys, runs, reached, ends_of(host, keys, None))
    if device.type == "cuda":
        library_of(device).cuda.current_stream(device).synchronize()
    return DeviceTables(host, keys, runs, units, reached, unpadded, device)


@lru_cache(maxsize=64)
def device_tiles(tables: DeviceTables, sizes: Sizes, least: int) -> QueryTiles:
    """Return `query_tiles` on the device of `tables`, made once; the first call waits for the copy, as for `tables`."""
    tiles: QueryTiles = on_device(query_tiles(tables.geometry, sizes, least), tables.device)
    if tables.device.type == "cuda":
        library_of(tables.device).cuda.current_stream(tables.device).synchronize()
    return tiles


@lru_cache(maxsize=64)
def device_key_tiles(tables: DeviceTables, sizes: KeySizes) -> KeyTiles:
    """Return `key_tiles` on the device of `tables`, made once."""
    tiles: KeyTiles = on_device(key_tiles(tables.geometry, sizes), tables.device)
    return tiles


@lru_cache(maxsize=256)
def numbers(values: tuple[int, ...], device: Any) -> Any:
    """Return a few numbers as int32 on a device: kept there, for a copy from the host would make every call wait."""
    return placed(np.array(values, np.int32), device)


@lru_cache(maxsize=256)
def poisson_thresholds(into: float, into_max: int, device: Any) -> Any:
    """Return `poisson_table(into, into_max)` as words, low before high, int32 on a device, kept there."""
    return placed(poisson_table(into, into_max).view(np.int32), device)
