"""CuPy arrays: backends that take them get them as they are, those that take torch tensors get the same memory.

Nothing here reads an array, so nothing waits for a device. Work goes to CuPy's current stream, torch's too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import Any

import cupy
import ml_dtypes
import numpy as np

from sparsemoc.backends import Randomness, Result
from sparsemoc.frameworks import numpy as numpy_arrays
from sparsemoc.frameworks.execution import Execution
from sparsemoc.spec.errors import ShapeError, SpecError, describe
from sparsemoc.spec.host import dtype_name, host
from sparsemoc.spec.layout import Layout
from sparsemoc.spec.philox import seed_number

NAME = "cupy"
#: The library in which the memory of an array can be shown.
_TORCH = "torch"
#: DLPack's number for memory of the CPU.
_CPU = 1


def checked(array: Any, argument: str, function: str) -> cupy.ndarray:
    """Return a float array of a dtype that is served, or raise ShapeError."""
    if not isinstance(array, cupy.ndarray):
        raise ShapeError(f"{function}: `{argument}` must be a CuPy array, got {describe(array)}.")
    if dtype(array) not in numpy_arrays.DTYPES or not array.dtype.isnative:
        order = "" if array.dtype.isnative else " in the other one"
        raise ShapeError(
            f"{function}: `{argument}` must be {', '.join(numpy_arrays.DTYPES)} in native byte order, "
            f"got {array.dtype.name}{order}. Hint: array.astype(cupy.float32)."
        )
    return array


def device(array: cupy.ndarray) -> str:
    """Return the device, "cuda:0"."""
    return f"cuda:{array.device.id}"


def dtype(array: cupy.ndarray) -> str:
    """Return the name of an array's dtype."""
    return str(array.dtype.name)


def integers(array: Any, argument: str, function: str, like: cupy.ndarray) -> cupy.ndarray:
    """Return integers, in an array or a sequence, as int32 on the device of `like`, clamped to [0, 2**31 - 1]."""
    if not isinstance(array, cupy.ndarray):
        return own(numpy_arrays.integers(array, argument, function), like)
    if array.dtype.kind not in "iu":
        raise ShapeError(
            f"{function}: `{argument}` must be an integer array, got dtype {array.dtype}. "
            "Hint: array.astype(cupy.int32)."
        )
    most = min(np.iinfo(np.int32).max, np.iinfo(array.dtype).max)
    with array.device:
        return own(cupy.clip(array, 0, most).astype(cupy.int32), like)


def seed(value: Any, like: cupy.ndarray) -> Any:
    """Return a 0-d integer array as int64 on the device of `like`, its 64 bits; anything else as an int."""
    if not isinstance(value, cupy.ndarray):
        return seed_number(value)
    if value.ndim or value.dtype.kind not in "iu":
        raise SpecError(
            f"seed must be a whole number or a 0-d integer array, got {value.dtype}{list(value.shape)}. Hint: seed=0."
        )
    with value.device:
        return own(value.astype(cupy.int64), like)


def transpose(array: cupy.ndarray, axes: tuple[int, ...]) -> cupy.ndarray:
    """Return a view with the axes in another order."""
    return array.transpose(axes)


def expand(array: cupy.ndarray) -> cupy.ndarray:
    """Return a view with a batch axis of 1 in front."""
    return array[None]


def views(array: cupy.ndarray) -> tuple[str, ...]:
    """Return torch where it is installed and made for CUDA."""
    return (_TORCH,) if _torch_has_cuda() else ()


@cache
def _torch_has_cuda() -> bool:
    found = find_spec(_TORCH)
    if found is None or found.origin is None:
        return False
    # Of torch only the file that tells its version is run: loading all of it takes seconds, and it may not be needed.
    return run_path(str(Path(found.origin).with_name("version.py"))).get("cuda") is not None


def show(array: cupy.ndarray, framework: str) -> Any:
    """Return the array, or a torch tensor in its memory; of an array that runs backwards, in that of a copy."""
    if framework == NAME:
        return array
    torch = import_module(_TORCH)
    if any(stride < 0 for stride in array.strides):  # tensors have none such
        array = cupy.ascontiguousarray(array)
    if dtype(array) == "bfloat16":  # which CuPy does not exchange
        return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


def own(array: Any, like: cupy.ndarray) -> cupy.ndarray:
    """Return an array of a served library on the device of `like`: the same memory if it lies there."""
    with like.device:
        if not isinstance(array, cupy.ndarray):
            array = _exchanged(array) if _on_gpu(array) else cupy.asarray(host(array))
        return array if array.device == like.device else cupy.asarray(array)


def _on_gpu(array: Any) -> bool:
    return hasattr(array, "__dlpack_device__") and array.__dlpack_device__()[0] != _CPU


def _exchanged(array: Any) -> cupy.ndarray:
    """Return an array in the memory of one of another library on a GPU."""
    if dtype_name(array) == "bfloat16":
        return cupy.from_dlpack(array.view(import_module(_TORCH).int16)).view(ml_dtypes.bfloat16)
    return cupy.from_dlpack(array)


def deterministic() -> bool:
    """Return False: CuPy has no such setting."""
    return False


def records(*arrays: cupy.ndarray) -> bool:
    """Return False: CuPy records no gradients."""
    return False


def pool(run: Execution, k: cupy.ndarray, key_lengths: cupy.ndarray | None) -> Any:
    """Return the mean key of each chunk."""
    with _place(run, k):
        return run.compute_pool(k, key_lengths)


def route(
    run: Execution,
    q: cupy.ndarray,
    centroids: cupy.ndarray,
    key_lengths: cupy.ndarray | None,
    randomness: Randomness | None,
) -> Any:
    """Return `Layout.selected`."""
    with _place(run, q):
        return run.compute_route(q, centroids, key_lengths, randomness)


def attend(run: Execution, q: cupy.ndarray, k: cupy.ndarray, v: cupy.ndarray, layout: Layout, scale: float) -> Result:
    """Return out and lse."""
    with _place(run, q):
        return run.compute_forward(q, k, v, layout, scale)


def backward(run: Execution, q: cupy.ndarray, *given: Any) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray]:
    """Return dq, dk, dv."""
    with _place(run, q):
        return run.compute_backward(q, *given)


@contextmanager
def _place(run: Execution, array: cupy.ndarray) -> Iterator[None]:
    """Compute on the device of an array, and on CuPy's current stream where it is torch that computes.

    On one stream what one library writes the other reads in order, and memory that one gives back is used again in
    order: nothing has to wait.
    """
    with array.device:
        if run.problem.framework != _TORCH:
            yield
            return
        torch = import_module(_TORCH)
        with torch.cuda.stream(_torch_stream(torch.cuda, cupy.cuda.get_current_stream().ptr, array.device.id)):
            yield


def _torch_stream(cuda: Any, pointer: int, device: int) -> Any:
    """Return CuPy's stream as torch's. The default stream is 0 to CuPy; torch would make a new one of that."""
    return cuda.ExternalStream(pointer, device=device) if pointer > 1 else cuda.default_stream(device)
