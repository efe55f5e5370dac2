"""NumPy arrays: the native form of the CPU backends."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends import Randomness, Result
from sparsemoc.frameworks.execution import Execution
from sparsemoc.spec.errors import ShapeError, describe
from sparsemoc.spec.host import host
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.philox import seed_number
from sparsemoc.spec.traced import is_traced

NAME = "numpy"
DTYPES = ("float16", "bfloat16", "float32", "float64")


def checked(array: Any, argument: str, function: str) -> NDArray[Any]:
    """Return a float array of a dtype that is served, or raise ShapeError."""
    if not isinstance(array, np.ndarray):
        raise ShapeError(f"{function}: `{argument}` must be a NumPy array, got {describe(array)}.")
    if isinstance(array, np.ma.MaskedArray):
        raise ShapeError(f"{function}: `{argument}` must not be a masked array. Hint: use key_lengths for padding.")
    if array.dtype.name not in DTYPES or not array.dtype.isnative:
        order = "" if array.dtype.isnative else " in the other one"
        raise ShapeError(
            f"{function}: `{argument}` must be {', '.join(DTYPES)} in native byte order, "
            f"got {array.dtype.name}{order}. Hint: array.astype(numpy.float32)."
        )
    return array


def device(array: NDArray[Any]) -> str:
    """Return "cpu"."""
    return "cpu"


def dtype(array: NDArray[Any]) -> str:
    """Return the name of an array's dtype."""
    return str(array.dtype.name)


def integers(array: Any, argument: str, function: str, like: Any = None) -> NDArray[np.int32]:
    """Return an integer array, of a served library or a sequence, as int32; values clamp to [0, 2**31 - 1]."""
    if isinstance(array, np.ma.MaskedArray):
        raise ShapeError(f"{function}: `{argument}` must not be a masked array. Hint: array.filled(0).")
    if is_traced(array):
        raise ShapeError(f"{function}: `{argument}` must be an integer array, got {describe(array)}.")
    try:
        values = host(array)
    except (TypeError, ValueError):  # numbers on a device, rows of unlike lengths
        raise ShapeError(f"{function}: `{argument}` must be an integer array, got {describe(array)}.") from None
    if values.dtype.kind not in "iu":
        raise ShapeError(
            f"{function}: `{argument}` must be an integer array, got dtype {values.dtype}. "
            "Hint: array.astype(numpy.int32)."
        )
    clamped: NDArray[np.int32] = np.clip(values, 0, np.iinfo(np.int32).max).astype(np.int32)
    return clamped


def seed(value: Any, like: Any) -> int:
    """Return a seed mod 2**64."""
    return seed_number(value)


def transpose(array: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """Return a view with the axes in another order."""
    return array.transpose(axes)


def expand(array: NDArray[Any]) -> NDArray[Any]:
    """Return a view with a batch axis of 1 in front."""
    return array[None]


def views(array: NDArray[Any]) -> tuple[str, ...]:
    """Return no other library: backends take NumPy arrays as they are, or do not."""
    return ()


def show(array: NDArray[Any], framework: str) -> NDArray[Any]:
    """Return the array."""
    return array


def own(array: Any, like: Any) -> NDArray[Any]:
    """Return an array of a served library as NumPy's."""
    return host(array)


def deterministic() -> bool:
    """Return False: NumPy has no such setting."""
    return False


def records(*arrays: NDArray[Any]) -> bool:
    """Return False: NumPy records no gradients."""
    return False


def pool(run: Execution, k: NDArray[Any], key_lengths: NDArray[np.int32] | None) -> Any:
    """Return the mean key of each chunk."""
    return run.compute_pool(k, key_lengths)


def route(
    run: Execution,
    q: NDArray[Any],
    centroids: NDArray[Any],
    key_lengths: NDArray[np.int32] | None,
    randomness: Randomness | None,
) -> Any:
    """Return `Layout.selected`."""
    return run.compute_route(q, centroids, key_lengths, randomness)


def attend(run: Execution, q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], layout: Layout, scale: float) -> Result:
    """Return out and lse."""
    return run.compute_forward(q, k, v, layout, scale)


def backward(run: Execution, *given: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return dq, dk, dv."""
    return run.compute_backward(*given)
