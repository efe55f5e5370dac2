"""Array libraries as the suite sees them: its problems are NumPy arrays, what it tests may take and give others."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.errors import UnsupportedError

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
    if name not in ("numpy", "jax"):
        raise ValueError(f'testing: framework must be "numpy", "jax" or "torch", got {name!r}.')
    if device not in (None, "cpu"):
        raise ValueError(f"testing: device must be left out for NumPy and JAX arrays, got {device!r}.")
    return _NumPy() if name == "numpy" else _Jax()


class _NumPy:
    def give(self, array: Array) -> Array:
        return array

    def take(self, array: Any) -> Array:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"NumPy arrays must come back where they went in, got {type(array).__name__}.")
        return array


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
