"""The processor as tuning knows it: its name, and the caches that the cost model counts with."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import llvmlite.binding

from sparsemoc.backends.processor import processor
from sparsemoc.backends.protocol import Hardware

#: Where Linux describes the caches of the first core.
_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")


class Caches(NamedTuple):
    """Bytes of the data caches: of a core, of a core, and of the cores that share the third."""

    first: int = 32 * 2**10
    second: int = 2**20
    third: int = 32 * 2**20


@cache
def hardware() -> Hardware:
    """Return the processor's model, and its architecture as LLVM calls it."""
    return Hardware(processor(), llvmlite.binding.get_host_cpu_name())


@cache
def caches(folder: Path = _FOLDER) -> Caches:
    """Return the sizes that Linux tells of, and usual ones where it tells of none."""
    found: dict[int, int] = {}
    for index in folder.glob("index*"):
        try:
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
            if kind != "Instruction":
                found[int(level)] = int(size.removesuffix("K")) * 2**10
        except (OSError, ValueError):
            continue
    usual = Caches()
    return Caches(*(found.get(level, size) for level, size in enumerate(usual, 1)))
