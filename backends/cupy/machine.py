"""What host code is written against: kernels, the machine that they run on, and what it knows of arrays."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends.cupy.arrays import Arrays, HostCopy
from sparsemoc.backends.cupy.errors import KernelError
from sparsemoc.backends.protocol import Array
from sparsemoc.spec.errors import describe

#: Copies of 16 bytes need addresses that are multiples of it.
ALIGNMENT = 16


@dataclass(frozen=True)
class Kernel:
    """A kernel, compiled for its constants.

    Attributes:
        file: its source, "routed" for cuda/routed.cu; see `sources.place_of`.
        name: of the function.
        constants: macros and their values, by name in alphabetical order.
        threads: of a block, the macro THREADS.
        shared: bytes of dynamic shared memory, the macro SHARED_BYTES.
        blocks_per_sm: how many blocks the registers of a multiprocessor must hold, the macro BLOCKS_PER_SM.
    """

    file: str
    name: str
    constants: tuple[tuple[str, str | int], ...] = ()
    threads: int = 128
    shared: int = 0
    blocks_per_sm: int = 1

    @property
    def macros(self) -> dict[str, str | int]:
        """Every macro that its source is compiled with."""
        return dict(
            self.constants,
            THREADS=self.threads,
            BLOCKS_PER_SM=self.blocks_per_sm,
            SHARED_BYTES=self.shared,
            SOURCE_NUMBER=f"{source_number(self.file)}u",
        )

    def __str__(self) -> str:
        return f"{self.name} of {self.file}.cu ({', '.join(f'{name}={value}' for name, value in self.macros.items())})"


def kernel(
    file: str, name: str, *, threads: int = 128, shared: int = 0, blocks_per_sm: int = 1, **constants: str | int
) -> Kernel:
    """Return a kernel; `constants` are the macros that the head of its source lists."""
    values = ((key, int(value) if isinstance(value, bool) else value) for key, value in constants.items())
    return Kernel(file, name, tuple(sorted(values)), threads, shared, blocks_per_sm)


def source_number(file: str) -> int:
    """Return the number by which kernels report the file that they stand in."""
    return zlib.crc32(file.encode())


class Machine(Protocol):
    """Where arrays live and kernels run; hashable: one to an array library and device.

    Arrays of the three libraries agree on `shape`, basic slicing and `reshape`; all else is asked here.
    """

    @property
    def capability(self) -> int:
        """Compute capability, 90 for sm_90; 0 where a CPU stands in for the GPU."""

    def __hash__(self) -> int:
        """Return the same for the same array library and device."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Return a new contiguous array of the caller's library, by its allocator; what it holds is undefined."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Return a new contiguous array of zeros."""

    def upload(self, array: NDArray[Any]) -> Array:
        """Return a copy of a NumPy array, and wait until it is there: any stream may read it from then on."""

    def contiguous(self, x: Array) -> Array:
        """Return the array itself if it is contiguous, else a copy that is."""

    def transpose(self, x: Array, axes: tuple[int, ...]) -> Array:
        """Return a view with the axes in another order."""

    def pointer(self, x: Array) -> int:
        """Return the address of an array's first element."""

    def strides(self, x: Array) -> tuple[int, ...]:
        """Return the strides of an array in elements."""

    def dtype(self, x: Array) -> str:
        """Return the name of an array's dtype, "bfloat16"."""

    def aligned(self, x: Array) -> bool:
        """Return whether all rows along the last axis are dense, start and end at multiples of 16 bytes."""

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], **arguments: Any) -> None:
        """Run a kernel on the caller's stream; a grid without blocks runs nothing.

        Args:
            kernel: which.
            grid: blocks along x, y and z.
            **arguments: by the names of the signature: arrays, or None for a null pointer; ints; floats.

        Raises:
            KernelError: an argument is missing, unknown, or no value of its C type; or the launch failed.
        """

    def capturing(self) -> bool:
        """Return whether the caller's stream is being captured in a CUDA graph."""

    def copy_to_host(self, x: Array) -> HostCopy:
        """Begin to copy an array to the host, after all that is under way on the caller's stream."""

    def clear(self, x: Array) -> None:
        """Fill an array with zeros in place, on the caller's stream."""


@dataclass(frozen=True)
class ArrayMachine:
    """The half of a machine that is about arrays, and left to their library."""

    library: str

    @property
    def arrays(self) -> Arrays:
        """What makes and reads arrays."""
        raise NotImplementedError

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """See `Machine`."""
        return self.arrays.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """See `Machine`."""
        return self.arrays.zeros(shape, dtype)

    def upload(self, array: NDArray[Any]) -> Array:
        """See `Machine`."""
        return self.arrays.upload(np.ascontiguousarray(array))

    def contiguous(self, x: Array) -> Array:
        """See `Machine`."""
        return self.arrays.contiguous(x)

    def transpose(self, x: Array, axes: tuple[int, ...]) -> Array:
        """See `Machine`."""
        return self.arrays.transpose(x, axes)

    def pointer(self, x: Array) -> int:
        """See `Machine`."""
        return self.arrays.pointer(x)

    def strides(self, x: Array) -> tuple[int, ...]:
        """See `Machine`."""
        return self.arrays.strides(x)

    def dtype(self, x: Array) -> str:
        """See `Machine`."""
        return self.arrays.dtype(x)

    def aligned(self, x: Array) -> bool:
        """See `Machine`."""
        size, strides = self.arrays.itemsize(x), self.arrays.strides(x)
        steps = [stride for stride, length in zip(strides[:-1], x.shape[:-1], strict=True) if length > 1]
        dense = strides[-1] == 1 or x.shape[-1] == 1
        return dense and not any(
            bytes_ % ALIGNMENT for bytes_ in (self.pointer(x), x.shape[-1] * size, *(step * size for step in steps))
        )

    def capturing(self) -> bool:
        """See `Machine`."""
        return self.arrays.capturing()

    def copy_to_host(self, x: Array) -> HostCopy:
        """See `Machine`."""
        return self.arrays.copy_to_host(x)

    def clear(self, x: Array) -> None:
        """See `Machine`."""
        self.arrays.clear(x)


@lru_cache(maxsize=64)
def _machine(library: str, kind: str, index: int) -> Machine:
    if kind == "cuda":
        from sparsemoc.backends.cupy.cuda import CudaMachine

        return CudaMachine(library, index)
    from sparsemoc.backends.cupy.emulator import EmulatedMachine

    return EmulatedMachine(library)


def machine_of(array: Array) -> Machine:
    """Return the machine that holds an array of CuPy, torch or NumPy; a CPU's is the emulator.

    Raises:
        KernelError: it is an array of none of them.
    """
    cupy, torch = sys.modules.get("cupy"), sys.modules.get("torch")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return _machine("cupy", "cuda", int(array.device.id))
    if torch is not None and isinstance(array, torch.Tensor):
        return _machine("torch", array.device.type, array.device.index or 0)
    if isinstance(array, np.ndarray):
        return _machine("numpy", "cpu", 0)
    raise KernelError(f"arrays must be of CuPy, torch or NumPy, got {describe(array)}.")


def layouts_of(machine: Machine, arrays: Mapping[str, Array]) -> dict[str, int]:
    """Return the strides of arrays as `strides_of` does, and whether each is aligned: aligned_q, ..."""
    found = {f"aligned_{name}": int(machine.aligned(x)) for name, x in arrays.items()}
    for name, x in arrays.items():
        found |= strides_of(machine, name, x)
    return found


def strides_of(machine: Machine, name: str, x: Array, axes: str = "blhd") -> dict[str, int]:
    """Return the strides of an array as arguments of a kernel: stride_qb, stride_ql, ... for the name "q"."""
    return {f"stride_{name}{axis}": step for axis, step in zip(axes, machine.strides(x), strict=True)}
