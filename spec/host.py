"""Arrays of any library, read without importing the library."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def dtype_name(array: Any) -> str:
    """Return the name of an array's dtype, which is the same for NumPy and torch: "int32"."""
    return str(array.dtype).removeprefix("torch.")


def host(array: Any) -> NDArray[Any]:
    """Return an array as NumPy's: its own memory where that is the CPU's, else a copy, which waits for the device."""
    if isinstance(array, np.ndarray):
        return array
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)
