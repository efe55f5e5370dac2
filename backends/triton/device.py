"""The tables of a plan on one device, made once and kept."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from sparsemoc.backends.triton.candidates import Candidates, Near, candidates, envelope, near
from sparsemoc.backends.triton.lengths import Ends, ends_of
from sparsemoc.backends.triton.tables import Geometry, Keys, Runs, Units, geometry
from sparsemoc.spec.philox import poisson_table
from sparsemoc.spec.plan import Plan


def on_device(tables: Any, device: Any) -> Any:
    """Return a dataclass of tables with torch tensors on a device in place of its arrays."""
    moved = {
        field.name: torch.from_numpy(value).to(device) if isinstance(value, np.ndarray) else value
        for field in fields(tables)
        for value in (getattr(tables, field.name),)
    }
    return type(tables)(**moved)


@dataclass(frozen=True, eq=False)
class DeviceTables:
    """A plan's tables where the kernels read them.

    Attributes:
        geometry: all of them on the host.
        keys, runs, units: those of `geometry` as torch tensors on `device`.
        near: the chunks that token windows may reach, on the device.
        unpadded: the candidates of a call without padding.
        device: where the tensors are.
        envelopes: those made so far, see `envelope`.
    """

    geometry: Geometry
    keys: Keys
    runs: Runs
    units: Units
    near: Near
    unpadded: Candidates
    device: torch.device
    envelopes: dict[tuple[int, int, bool], Any] = field(default_factory=dict, repr=False)

    def candidates(self, ends: Ends) -> Candidates:
        """Return the candidates of a call: those of the plan, or, padded, those of its lengths."""
        if not ends.padded:
            return self.unpadded
        return candidates(self.geometry, self.keys, self.runs, self.near, ends)

    def envelope(self, units: int, chunks: int, *, local: bool = False) -> Any:
        """Return the chunks that each tile of `units` routing units may take, int32 (tiles, 2) first and end.

        The first is rounded down to a multiple of `chunks`. `local` counts from the first chunk of the sample.
        """
        key = units, chunks, local
        if key not in self.envelopes:
            self.envelopes[key] = torch.from_numpy(envelope(self.geometry, *key)).to(self.device)
        return self.envelopes[key]


@lru_cache(maxsize=64)
def device_tables(plan: Plan, padded: bool, device: torch.device) -> DeviceTables:
    """Return the tables of a plan on a device; `padded` says whether the call has key_lengths.

    The first call for a plan copies them there and waits for it, so that any stream may read them from then on; it
    cannot be captured in a CUDA graph. Later calls do neither.
    """
    host = geometry(plan, padded)
    keys, runs, units = (on_device(tables, device) for tables in (host.keys, host.runs, host.units))
    reached = on_device(near(host), device)
    unpadded = candidates(host, keys, runs, reached, ends_of(host, keys, None))
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return DeviceTables(host, keys, runs, units, reached, unpadded, device)


@lru_cache(maxsize=256)
def numbers(values: tuple[int, ...], device: torch.device) -> Any:
    """Return a few numbers as int32 on a device: kept there, for a copy from the host would make every call wait."""
    return torch.tensor(values, dtype=torch.int32, device=device)


@lru_cache(maxsize=256)
def poisson_thresholds(into: float, into_max: int, device: torch.device) -> Any:
    """Return `poisson_table(into, into_max)` as int64 on a device, kept there."""
    return torch.from_numpy(poisson_table(into, into_max).astype(np.int64)).to(device)
