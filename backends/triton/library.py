"""The array library of a call, which the host code asks its arrays for: torch, or what stands for it.

The host code is written for torch tensors. Arrays of another library come in objects that answer as tensors do, as far
as the host code asks, and that name under `library` what makes more of them and launches kernels on them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def library_of(holder: Any) -> Any:
    """Return what makes arrays: the `library` that an array or a device names, else torch."""
    found = getattr(holder, "library", None)
    return import_module("torch") if found is None else found


def kernel_on(array: Any, kernel: Any) -> Any:
    """Return a kernel as it is launched on arrays like the one given: `kernel_on(q, merge)[grid](...)`."""
    found = getattr(array, "library", None)
    return kernel if found is None else found.kernel(kernel)


def starts(counts: Any) -> Any:
    """Return how much lies before each count along the last axis, and the total: int32 (..., n + 1)."""
    library = library_of(counts)
    return library.nn.functional.pad(counts.cumsum(-1, dtype=library.int32), (1, 0))
