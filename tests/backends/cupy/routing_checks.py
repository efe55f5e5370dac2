"""A plan with most of what routing knows, and the routing kernels run on it by the emulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsemoc.backends.cupy.machine import Machine, machine_of
from sparsemoc.backends.cupy.tables import DeviceTables, Ends, device_tables, ends_of
from sparsemoc.spec.plan import Plan

ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16")
DTYPES = ("float32", "float16", "bfloat16")
MACHINE: Machine = machine_of(np.zeros(1))


@dataclass(frozen=True)
class Config:
    """Tile sizes so small that a few tokens fill several."""

    pool_warps: int = 4
    route_chunks: int = 16
    route_warps: int = 1
    index_rows: int = 16


SMALL = Config()


def of_dtype(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return numbers in a dtype, that of ml_dtypes among them."""
    return array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def tables_of(plan: Plan, key_lengths: NDArray[np.int32] | None = None) -> tuple[DeviceTables, Ends]:
    """Return a plan's tables on the CPU, and the ends of a call."""
    tables = device_tables(plan, key_lengths is not None, MACHINE)
    return tables, ends_of(tables, key_lengths)
