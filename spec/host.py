"""Arrays of any library, read without importing the library."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.errors import UnsupportedError
from sparsemoc.spec.traced import is_traced


def dtype_name(array: Any) -> str:
    """Return the name of an array's dtype, which is the same for NumPy, JAX and torch: "int32"."""
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
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)
