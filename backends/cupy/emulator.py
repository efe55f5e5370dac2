"""The machine that stands in for a GPU: the same kernels on the CPU, on NumPy arrays and torch CPU tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

from sparsemoc.backends.cupy.arguments import has_blocks, values_of
from sparsemoc.backends.cupy.arrays import Arrays, NumpyArrays, TorchArrays
from sparsemoc.backends.cupy.errors import KernelError
from sparsemoc.backends.cupy.host_compiler import runner, switch
from sparsemoc.backends.cupy.machine import ArrayMachine, Kernel

_REVERSE = ContextVar("reverse", default=False)


def emulated() -> bool:
    """Return whether kernels are to run on the CPU: SPARSEMOC_CUPY_EMULATE=1, read when the backend is imported."""
    return os.environ.get("SPARSEMOC_CUPY_EMULATE") == "1"


@contextmanager
def in_reverse() -> Iterator[None]:
    """Let threads run from the last to the first, and copies arrive at once: what leans on an order comes out other."""
    token = _REVERSE.set(True)
    try:
        yield
    finally:
        _REVERSE.reset(token)


@dataclass(frozen=True)
class EmulatedMachine(ArrayMachine):
    """A CPU.

    Attributes:
        library: of the arrays, "numpy" or "torch".
    """

    capability = 0

    @property
    def arrays(self) -> Arrays:
        """What makes and reads arrays."""
        return _arrays(self.library)

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], **arguments: Any) -> None:
        """See `Machine`; returns when the kernel has run."""
        values = values_of(kernel, arguments, self.arrays)
        if not has_blocks(kernel, grid):
            return
        switch(kernel)(int(_REVERSE.get()))
        error = runner(kernel)(*grid, kernel.threads, kernel.shared, *values)
        if error is not None:
            raise KernelError(f"launch: {kernel}, grid {grid}: {error.decode(errors='replace')}")


@cache
def _arrays(library: str) -> Arrays:
    if library == "numpy":
        return NumpyArrays()
    return TorchArrays("cpu")
