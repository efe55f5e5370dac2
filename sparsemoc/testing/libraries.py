"""Array libraries as the suite sees them: its problems are NumPy arrays, what it tests may take and give others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.errors import UnsupportedError
from sparsemoc.spec.host import host

Array = NDArray[Any]


class Library(Protocol):
    """The way into a library and back."""

    def give(self, array: Array) -> Any:
        """Return an array of the library with the values and, as far as it can, the strides of a NumPy array."""

    def take(self, array: Any) -> Array:
        """Return an array of the library as NumPy's."""


def library(name: str, device: str | None = None) -> Library:
    """Return a library by name; torch with its tensors on a device, by default the GPU if there is one."""
    if name == "torch":
        return _Torch(device)
    others: dict[str, Callable[[], Library]] = {"numpy": _NumPy, "cupy": _Cupy, "jax": _Jax}
    if name not in others:
        raise ValueError(f'testing: framework must be "numpy", "cupy", "jax" or "torch", got {name!r}.')
    if device not in (None, "cpu"):
        raise ValueError(f"testing: device must be left out for NumPy, CuPy and JAX arrays, got {device!r}.")
    return others[name]()


class _NumPy:
    def give(self, array: Array) -> Array:
        return array

    def take(self, array: Any) -> Array:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"NumPy arrays must come back where they went in, got {type(array).__name__}.")
        return array


class _Cupy:
    """Arrays on the current device."""

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy

    def give(self, array: Array) -> Any:
        if not array.size:
            return self._cupy.asarray(array)
        forwards = tuple(slice(None, None, -1 if step < 0 else 1) for step in array.strides)
        low = array[forwards]  # its first element is the lowest in memory
        span = 1 + sum((n - 1) * step for n, step in zip(low.shape, low.strides, strict=True)) // array.itemsize
        # To the device goes the memory that the array spans, so that its strides come along.
        memory = self._cupy.asarray(np.lib.stride_tricks.as_strided(low, (span,), (array.itemsize,)))
        return self._cupy.lib.stride_tricks.as_strided(memory, low.shape, low.strides)[forwards]

    def take(self, array: Any) -> Array:
        if not isinstance(array, self._cupy.ndarray):
            raise TypeError(f"CuPy arrays must come back where they went in, got {type(array).__name__}.")
        return host(array)


class _Jax:
    """Arrays on the default device. They have no strides."""

    def __init__(self) -> None:
        import jax

        self._jax = jax

    def give(self, array: Array) -> Any:
        given = self._jax.numpy.asarray(array)
        if given.dtype != array.dtype:
            raise UnsupportedError(
                f"testing: JAX holds no {array.dtype}. Hint: jax.config.update('jax_enable_x64', True)."
            )
        return given

    def take(self, array: Any) -> Array:
        if not isinstance(array, self._jax.Array):
            raise TypeError(f"JAX arrays must come back where they went in, got {type(array).__name__}.")
        return np.asarray(array)


class _Torch:
    def __init__(self, device: str | None) -> None:
        import torch

        from sparsemoc.frameworks import torch as tensors

        self._tensors = tensors
        self._torch = torch
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def give(self, array: Array) -> Any:
        tensor = self._tensors.own(array, self._torch.empty(0))
        # To the device goes the memory that the array spans, so that its strides come along.
        span = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        if not tensor.numel():
            return tensor.to(self._device)
        return tensor.as_strided((span,), (1,)).to(self._device).as_strided(tensor.shape, tensor.stride())

    def take(self, array: Any) -> Array:
        if not isinstance(array, self._torch.Tensor) or array.device.type != self._device.type:
            raise TypeError(f"tensors on {self._device} must come back where they went in, got {type(array).__name__}.")
        shown: Array = self._tensors.show(array.cpu(), "numpy")
        return shown
