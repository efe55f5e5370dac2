"""Arrays of any library, read without importing the library."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.errors import UnsupportedError
from sparsemoc.spec.traced import is_traced


def is_cupy(value: object) -> bool:
    """Return whether a value is an array of CuPy, told without importing it."""
    return any(kind.__module__.partition(".")[0] == "cupy" for kind in type(value).__mro__)


def dtype_name(array: Any) -> str:
    """Return the name of an array's dtype, which is the same for NumPy, CuPy, JAX and torch: "int32"."""
    return str(array.dtype).removeprefix("torch.")


def host(array: Any) -> NDArray[Any]:
    """Return an array as NumPy's: its own memory where that is the CPU's, else a copy, which waits for the device.

    Raises:
        UnsupportedError: JAX traces the array, which has no data yet.
    """
    if isinstance(array, np.ndarray):
        return array
    if is_traced(array):
        raise UnsupportedError(
            f"an array must hold data to be read, got a traced {array.dtype}{list(array.shape)}. "
            "Hint: read it outside of jax.jit, jax.grad and jax.vmap, and leave Options(checked=True) out inside."
        )
    if is_cupy(array):
        return np.asarray(array.get())
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)
