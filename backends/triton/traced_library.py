"""What makes traced arrays and launches kernels on them: the part of torch that the host code uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from sparsemoc.backends.triton.traced import Memory, Shape, Traced
from sparsemoc.backends.triton.written import written


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, as a function of arrays.

    Attributes:
        kernel: the `@triton.jit` function.
        grid: programs along each axis.
        given: arguments by name: 1-d arrays and scalars, compile-time ones too.
        changed: those of `given` that the kernel writes to.
        fresh: (size, dtype) by name of those that it writes to and that hold nothing yet, in the order of its
            arguments.
        warps, stages: launch options.
    """

    kernel: Any
    grid: Shape
    given: Mapping[str, Any]
    changed: tuple[str, ...]
    fresh: Mapping[str, tuple[int, Any]]
    warps: int
    stages: int


class Launcher(Protocol):
    """How a launch is carried out."""

    def __call__(self, launch: Launch) -> Mapping[str, Any]:
        """Return the values of `changed` and of `fresh` after the launch, 1-d arrays by name."""


class TracedLibrary:
    """Stands for the module torch, and for a device.

    Args:
        launcher: what launches kernels.
    """

    type = "traced"
    contiguous_format = None
    float16, float32, bfloat16, int32 = (jnp.dtype(name) for name in ("float16", "float32", "bfloat16", "int32"))

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self.nn = SimpleNamespace(functional=SimpleNamespace(pad=self._pad))

    @property
    def library(self) -> TracedLibrary:
        """Itself."""
        return self

    def array(self, values: Any) -> Traced:
        """Return a JAX or NumPy array in memory of its own."""
        return Traced(self, Memory(math.prod(values.shape), values.dtype, values.reshape(-1)), values.shape)

    def from_numpy(self, array: Any) -> Traced:
        """Return a NumPy array in memory of its own: a constant of what is traced."""
        return self.array(array)

    def empty(self, shape: Any, *, dtype: Any, device: Any) -> Traced:
        """Return an array that holds nothing yet."""
        return Traced(self, Memory(math.prod(shape), dtype), shape)

    def zeros(self, shape: Any, *, dtype: Any, device: Any) -> Traced:
        """Return an array of zeros."""
        return self.array(jnp.zeros(tuple(shape), dtype))

    def mul(self, array: Traced, factor: float, *, out: Traced) -> None:
        """Write the product into `out`."""
        out.write(array.value() * factor)

    def _pad(self, array: Traced, widths: tuple[int, int]) -> Traced:
        """Return an array with zeros before and after the elements of the last axis."""
        return self.array(jnp.pad(array.value(), [(0, 0)] * (len(array.shape) - 1) + [widths]))

    def kernel(self, kernel: Any) -> _Grids:
        """Return a kernel as Triton launches it: `library.kernel(merge)[grid](...)`."""
        return _Grids(lambda grid: lambda *args, **options: self._launch(kernel, grid, args, options))

    def _launch(self, kernel: Any, grid: Shape, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        warps, stages = options.pop("num_warps"), options.pop("num_stages")
        arguments = dict(zip(kernel.arg_names, args, strict=False)) | options
        assert arguments.keys() == set(kernel.arg_names), "every argument of a kernel is given"
        if 0 in grid:
            return
        targets = written(kernel.fn.__name__, arguments)
        given: dict[str, Any] = {}
        fresh: dict[str, tuple[int, Any]] = {}
        for name in kernel.arg_names:
            one = arguments[name]
            if not isinstance(one, Traced):
                given[name] = one.item() if isinstance(one, np.generic) else one
            # A pointer must point somewhere, though of an empty array nothing is read or written.
            elif name in targets and (one.memory.value is None or not one.size):
                fresh[name] = (max(one.extent, 1), one.dtype)
            else:
                given[name] = one.memory.read(one.offset, one.extent) if one.size else np.zeros(1, one.dtype)
        arrays = [name for name in kernel.arg_names if isinstance(arguments[name], Traced)]
        assert arrays[len(arrays) - len(fresh) :] == list(fresh), "what is written first follows what is read"
        changed = tuple(name for name in targets if name in given)
        found = self._launcher(Launch(kernel, grid, given, changed, fresh, warps, stages))
        for name in (*changed, *fresh):
            one = arguments[name]
            if one.size:
                one.memory.write(one.offset, found[name])


class _Grids:
    """What answers to `kernel[grid]`."""

    def __init__(self, launch: Callable[[Shape], Callable[..., None]]) -> None:
        self._launch = launch

    def __getitem__(self, grid: Shape) -> Callable[..., None]:
        return self._launch(grid)
