"""The machine proper: a GPU, its kernels launched by CuPy, on arrays of CuPy and of torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from sparsemoc.backends.cupy.arguments import has_blocks, values_of
from sparsemoc.backends.cupy.arrays import Arrays, CupyArrays, TorchArrays
from sparsemoc.backends.cupy.errors import KernelError
from sparsemoc.backends.cupy.machine import ArrayMachine, Kernel
from sparsemoc.backends.cupy.nvrtc import arch_of, compile_kernel
from sparsemoc.backends.cupy.sources import signature

#: What CuPy passes for each kind of parameter: scalars of NumPy, by their bytes.
_SCALARS: dict[str, type[np.generic]] = {
    "pointer": np.uint64,
    "int": np.int32,
    "u32": np.uint32,
    "u64": np.uint64,
    "i64": np.int64,
    "float": np.float32,
}
#: Bytes of shared memory that a launch may use without asking for more.
_SHARED_UNASKED = 48 << 10


@dataclass(frozen=True)
class CudaMachine(ArrayMachine):
    """A GPU.

    Attributes:
        library: of the arrays, "cupy" or "torch"; kernels run on its current stream.
        device: the GPU's number.
    """

    device: int

    @property
    def capability(self) -> int:
        """Compute capability, 90 for sm_90."""
        return _capability(self.device)

    @property
    def arrays(self) -> Arrays:
        """What makes and reads arrays."""
        return _arrays(self.library, self.device)

    def launch(self, kernel: Kernel, grid: tuple[int, int, int], **arguments: Any) -> None:
        """See `Machine`; returns at once."""
        values = values_of(kernel, arguments, self.arrays)
        if not has_blocks(kernel, grid):
            return
        scalars = _scalars(kernel.file, kernel.name)
        passed = tuple([scalar(value) for scalar, value in zip(scalars, values, strict=True)])
        with self._current() as cupy:
            try:
                function = _function(kernel, self.device)
                function(grid, (kernel.threads, 1, 1), passed, shared_mem=kernel.shared)
            except (cupy.cuda.driver.CUDADriverError, cupy.cuda.runtime.CUDARuntimeError) as error:
                raise KernelError(
                    f"launch: {kernel}, grid {grid}, on device {self.device} (sm_{self.capability}): {error}. "
                    "Hint: CUDA_LAUNCH_BLOCKING=1 makes an earlier kernel's error show where it happens; an invalid "
                    "value may be more shared memory or threads than the device has."
                ) from error

    @contextmanager
    def _current(self) -> Iterator[Any]:
        """Make the device and the stream of the caller's library CuPy's own."""
        cupy = import_module("cupy")
        with cupy.cuda.Device(self.device):
            if self.library == "cupy":
                yield cupy
                return
            stream = import_module("torch").cuda.current_stream(self.device).cuda_stream
            with _stream(stream):
                yield cupy


@cache
def _scalars(file: str, name: str) -> tuple[type[np.generic], ...]:
    return tuple(_SCALARS[parameter.kind] for parameter in signature(file, name))


@cache
def _arrays(library: str, device: int) -> Arrays:
    return CupyArrays(device) if library == "cupy" else TorchArrays(f"cuda:{device}")


@cache
def _capability(device: int) -> int:
    return int(import_module("cupy").cuda.Device(device).compute_capability)


@dataclass(frozen=True)
class _Foreign:
    """A stream of another library, as CuPy asks for it."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


@lru_cache(maxsize=64)
def _stream(pointer: int) -> Any:
    """Return a stream of the current device as one of CuPy; torch never destroys its own."""
    return import_module("cupy").cuda.Stream.from_external(_Foreign(pointer))


@cache
def _function(kernel: Kernel, device: int) -> Any:
    """Return what launches a kernel, loaded on the device, which is current."""
    compiled = compile_kernel(kernel, arch_of(_capability(device)))
    function = import_module("cupy").RawModule(path=str(compiled.path)).get_function(kernel.name)
    if kernel.shared + compiled.shared > _SHARED_UNASKED:
        function.max_dynamic_shared_size_bytes = kernel.shared
    return function
