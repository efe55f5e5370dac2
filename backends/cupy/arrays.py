"""How each array library makes arrays and shows what kernels need of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends.protocol import Array


class HostCopy(NamedTuple):
    """A copy of an array on its way to the host.

    Attributes:
        values: what it becomes; undefined until it is done.
        done: says whether it is.
        wait: returns when it is.
    """

    values: NDArray[Any]
    done: Callable[[], bool]
    wait: Callable[[], None]


class Arrays(Protocol):
    """An array library on one device; the methods are those of `Machine`."""

    def holds(self, x: Any) -> bool:
        """Return whether an object is an array of this library on this device."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array: ...  # noqa: D102
    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array: ...  # noqa: D102
    def upload(self, array: NDArray[Any]) -> Array: ...  # noqa: D102
    def contiguous(self, x: Array) -> Array: ...  # noqa: D102
    def transpose(self, x: Array, axes: tuple[int, ...]) -> Array: ...  # noqa: D102
    def pointer(self, x: Array) -> int: ...  # noqa: D102
    def strides(self, x: Array) -> tuple[int, ...]: ...  # noqa: D102
    def dtype(self, x: Array) -> str: ...  # noqa: D102
    def itemsize(self, x: Array) -> int: ...  # noqa: D102
    def capturing(self) -> bool: ...  # noqa: D102
    def copy_to_host(self, x: Array) -> HostCopy: ...  # noqa: D102
    def clear(self, x: Array) -> None: ...  # noqa: D102


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return a dtype by name; NumPy learns that of bfloat16 from ml_dtypes."""
    return np.dtype(import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def undefined(dtype: str) -> float:
    """Return what new arrays hold where there is time to fill them: NaN, or the number farthest from any index."""
    if "int" not in dtype:
        return float("nan")
    return int(np.iinfo(dtype).max if dtype.startswith("u") else np.iinfo(dtype).min)


class _ShownAsNumpy:
    """What NumPy's arrays show, and CuPy's alike; the methods are those of `Machine`."""

    def transpose(self, x: Array, axes: tuple[int, ...]) -> Array:
        return x.transpose(axes)

    def strides(self, x: Array) -> tuple[int, ...]:
        return tuple(step // x.dtype.itemsize for step in x.strides)

    def dtype(self, x: Array) -> str:
        return str(x.dtype.name)

    def itemsize(self, x: Array) -> int:
        return int(x.dtype.itemsize)

    def clear(self, x: Array) -> None:
        x.fill(0)


@dataclass(frozen=True)
class NumpyArrays(_ShownAsNumpy):
    """NumPy's arrays."""

    def holds(self, x: Any) -> bool:
        """See `Arrays`."""
        return isinstance(x, np.ndarray)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """See `Machine`; what is never written reads as `undefined`, so that no result can depend on it."""
        return np.full(shape, undefined(dtype), numpy_dtype(dtype))

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """See `Machine`."""
        return np.zeros(shape, numpy_dtype(dtype))

    def upload(self, array: NDArray[Any]) -> Array:
        """See `Machine`."""
        return array.copy()

    def contiguous(self, x: Array) -> Array:
        """See `Machine`."""
        return np.ascontiguousarray(x)

    def pointer(self, x: Array) -> int:
        """See `Machine`."""
        return int(x.__array_interface__["data"][0])

    def capturing(self) -> bool:
        """See `Machine`."""
        return False

    def copy_to_host(self, x: Array) -> HostCopy:
        """See `Machine`."""
        return _finished(x.copy())


@dataclass(frozen=True)
class TorchArrays:
    """Torch's tensors on one device, "cpu" or "cuda:0"."""

    device: str

    def holds(self, x: Any) -> bool:
        """See `Arrays`."""
        torch = sys.modules.get("torch")
        return torch is not None and isinstance(x, torch.Tensor) and x.device == _torch_device(self.device)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """See `Machine`; on a CPU what is never written reads as `undefined`."""
        torch = import_module("torch")
        if self.device == "cpu":
            return torch.full(shape, undefined(dtype), dtype=getattr(torch, dtype))
        return torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """See `Machine`."""
        torch = import_module("torch")
        return torch.zeros(shape, dtype=getattr(torch, dtype), device=self.device)

    def upload(self, array: NDArray[Any]) -> Array:
        """See `Machine`."""
        torch = import_module("torch")
        made = torch.from_numpy(array.copy())
        if self.device == "cpu":
            return made
        made = made.to(self.device)
        torch.cuda.current_stream(self.device).synchronize()
        return made

    def contiguous(self, x: Array) -> Array:
        """See `Machine`."""
        return x.contiguous()

    def transpose(self, x: Array, axes: tuple[int, ...]) -> Array:
        """See `Machine`."""
        return x.permute(axes)

    def pointer(self, x: Array) -> int:
        """See `Machine`."""
        return int(x.data_ptr())

    def strides(self, x: Array) -> tuple[int, ...]:
        """See `Machine`."""
        return tuple(x.stride())

    def dtype(self, x: Array) -> str:
        """See `Machine`."""
        return str(x.dtype).removeprefix("torch.")

    def itemsize(self, x: Array) -> int:
        """See `Machine`."""
        return int(x.element_size())

    def capturing(self) -> bool:
        """See `Machine`."""
        return self.device != "cpu" and bool(import_module("torch").cuda.is_current_stream_capturing())

    def copy_to_host(self, x: Array) -> HostCopy:
        """See `Machine`; the copy goes to pinned memory, which the host need not wait for."""
        if self.device == "cpu":
            return _finished(x.numpy().copy())
        torch = import_module("torch")
        pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        pinned.copy_(x, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return HostCopy(pinned.numpy(), event.query, event.synchronize)

    def clear(self, x: Array) -> None:
        """See `Machine`."""
        # A tensor made in inference mode may be written in inference mode alone; any other may be, too.
        with import_module("torch").inference_mode():
            x.zero_()


@dataclass(frozen=True)
class CupyArrays(_ShownAsNumpy):
    """CuPy's arrays on the device of a number."""

    index: int

    def holds(self, x: Any) -> bool:
        """See `Arrays`."""
        cupy = sys.modules.get("cupy")
        return cupy is not None and isinstance(x, cupy.ndarray) and x.device.id == self.index

    @contextmanager
    def _here(self) -> Iterator[Any]:
        cupy = import_module("cupy")
        with cupy.cuda.Device(self.index):
            yield cupy

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """See `Machine`."""
        with self._here() as cupy:
            return cupy.empty(shape, dtype=numpy_dtype(dtype))

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """See `Machine`."""
        with self._here() as cupy:
            return cupy.zeros(shape, dtype=numpy_dtype(dtype))

    def upload(self, array: NDArray[Any]) -> Array:
        """See `Machine`."""
        with self._here() as cupy:
            made = cupy.asarray(array)
            cupy.cuda.get_current_stream().synchronize()
            return made

    def contiguous(self, x: Array) -> Array:
        """See `Machine`."""
        with self._here() as cupy:
            return cupy.ascontiguousarray(x)

    def pointer(self, x: Array) -> int:
        """See `Machine`."""
        return int(x.data.ptr)

    def capturing(self) -> bool:
        """See `Machine`."""
        with self._here() as cupy:
            return bool(cupy.cuda.get_current_stream().is_capturing())

    def copy_to_host(self, x: Array) -> HostCopy:
        """See `Machine`; the copy goes to pinned memory, which the host need not wait for."""
        with self._here() as cupy:
            pinned = import_module("cupyx").empty_pinned(x.shape, x.dtype)
            x.get(out=pinned, blocking=False)
            event = cupy.cuda.Event(disable_timing=True)
            event.record()
        return HostCopy(pinned, lambda: bool(event.done), event.synchronize)

    def clear(self, x: Array) -> None:
        """See `Machine`."""
        with self._here():
            x.fill(0)


@cache
def _torch_device(name: str) -> Any:
    return import_module("torch").device(name)


def _finished(values: NDArray[Any]) -> HostCopy:
    return HostCopy(values, lambda: True, lambda: None)
