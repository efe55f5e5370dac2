"""A stand-in for CuPy where there is no GPU: arrays in NumPy's memory, kernels run by the emulator.

With `installed() as cupy:` in its place, `machine_of(cupy.zeros(...))` is a `CudaMachine`, and all that it asks of CuPy
is answered here: NVRTC gives a "cubin" that names source and macros, RawModule reads that back and runs the emulated
kernel at once. It is strict where the real one is silent: an argument of the wrong width, a kernel that is given more
shared memory than it was allowed. What was launched is in `cupy.launches`, in order; what was compiled, not found on
disk, in `cupy.cuda.nvrtc.compiled`.

`cupy.busy = True` keeps every event undone until somebody waits for it, as if the GPU were still at work.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from sparsemoc.backends.cupy import cuda, faults, nvrtc
from sparsemoc.backends.cupy.host_compiler import runner
from sparsemoc.backends.cupy.machine import Kernel
from sparsemoc.backends.cupy.sources import FOLDER, signature, signatures
from tests.backends.cupy.fake_arrays import CAPABILITIES, DEVICES, READS, STREAMS, Device, Pinned, Stream, library

#: Shared memory that a kernel may use unasked, and at all.
UNASKED, MOST_SHARED = 48 << 10, 227 << 10
#: What holds on to the CuPy that it was imported with.
_FRAMEWORK = "sparsemoc.frameworks.cupy"
_WIDTHS = {"pointer": "uint64", "int": "int32", "u32": "uint32", "u64": "uint64", "i64": "int64", "float": "float32"}
_OWN_MACROS = {"THREADS", "SHARED_BYTES", "BLOCKS_PER_SM", "SOURCE_NUMBER"}


class CUDADriverError(RuntimeError):
    """What a failed launch raises."""


class CUDARuntimeError(RuntimeError):
    """What a failed call of the runtime raises."""


class NVRTCError(RuntimeError):
    """What a failed compilation raises."""


class Launch(NamedTuple):
    """A kernel that ran: with which arguments, and on which stream of which device."""

    kernel: Kernel
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[Any, ...]
    shared: int
    allowed: int
    stream: int
    device: int


class Event:
    """An event: done once recorded, unless the stand-in is `busy` and nobody has waited."""

    def __init__(self, disable_timing: bool = False) -> None:
        self._recorded = self._waited = False

    def record(self) -> None:
        assert not STREAMS[-1].capturing
        self._recorded = True

    @property
    def done(self) -> bool:
        assert self._recorded
        return self._waited or not sys.modules["cupy"].busy

    def synchronize(self) -> None:
        assert self._recorded
        self._waited = True


class RawKernel:
    """A kernel of a module."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.max_dynamic_shared_size_bytes = kernel, UNASKED

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        kinds = [parameter.kind for parameter in signature(self.kernel.file, self.kernel.name)]
        assert [str(argument.dtype) for argument in args] == [_WIDTHS[kind] for kind in kinds]
        allowed = self.max_dynamic_shared_size_bytes
        if shared_mem > allowed or allowed > MOST_SHARED:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        assert block == (self.kernel.threads, 1, 1)
        assert shared_mem == self.kernel.shared
        stream = STREAMS[-1].ptr
        sys.modules["cupy"].launches.append(
            Launch(self.kernel, grid, block, tuple(args), shared_mem, allowed, stream, DEVICES[-1])
        )
        error = runner(self.kernel)(*grid, block[0], shared_mem, *(argument.item() for argument in args))
        if error is not None:
            raise CUDADriverError(error.decode())


class RawModule:
    """What NVRTC's stand-in wrote to a file."""

    def __init__(self, *, path: str) -> None:
        name, macros = json.loads(Path(path).read_bytes().rstrip(b"\0"))
        place = Path(name).with_suffix("")
        self.file = place.name if place.parent == FOLDER else str(place)
        self.macros: dict[str, str] = macros

    def get_function(self, name: str) -> RawKernel:
        constants = tuple(sorted(item for item in self.macros.items() if item[0] not in _OWN_MACROS))
        numbers = (int(self.macros[macro]) for macro in ("THREADS", "SHARED_BYTES", "BLOCKS_PER_SM"))
        return RawKernel(Kernel(self.file, name, constants, *numbers))


class Nvrtc:
    """NVRTC: a program is its name and options."""

    NVRTCError = NVRTCError

    def __init__(self) -> None:
        self.programs: dict[int, dict[str, Any]] = {}
        self.compiled: list[dict[str, Any]] = []

    def getVersion(self) -> tuple[int, int]:  # noqa: N802
        return 99, 0  # no real one's, so that no file on disk is taken for another's

    def getSupportedArchs(self) -> tuple[int, ...]:  # noqa: N802
        return 80, 90

    def createProgram(self, text: str, name: str, headers: list[bytes], names: list[bytes]) -> int:  # noqa: N802
        assert all(isinstance(header, bytes) for header in headers + names)
        self.programs[len(self.programs) + 1] = {"name": name, "text": text, "headers": names}
        return len(self.programs)

    def compileProgram(self, program: int, options: tuple[str, ...]) -> None:  # noqa: N802
        self.programs[program]["options"] = options
        self.compiled.append(self.programs[program])

    def getCUBIN(self, program: int) -> bytes:  # noqa: N802
        made = self.programs[program]
        macros = dict(option[2:].split("=", 1) for option in made["options"] if option.startswith("-D"))
        return json.dumps([made["name"], macros]).encode()

    def getProgramLog(self, program: int) -> str:  # noqa: N802
        place = Path(self.programs[program]["name"])
        names = signatures(place.stem if place.parent == FOLDER else str(place.with_suffix("")))
        return "".join(f"Compiling entry function '{name}'\nUsed 40 registers\n" for name in names)

    def destroyProgram(self, program: int) -> None:  # noqa: N802
        assert program in self.programs


def _module() -> Any:
    made: Any = ModuleType("cupy")
    made.__spec__, made.__version__ = ModuleSpec("cupy", None), "14.2.0"
    vars(made).update(library())
    made.RawModule, made.launches, made.busy = RawModule, [], False
    made.cuda = SimpleNamespace(
        Device=Device,
        Stream=Stream,
        Event=Event,
        get_current_stream=lambda: STREAMS[-1],
        nvrtc=Nvrtc(),
        driver=SimpleNamespace(CUDADriverError=CUDADriverError),
        runtime=SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDevice=lambda: DEVICES[-1],
            getDeviceProperties=lambda index: {"name": f"Stand-in {index}".encode()},
            driverGetVersion=lambda: 12080,
            getDeviceCount=lambda: len(CAPABILITIES),
        ),
    )
    return made


def _forget() -> None:
    for cached in (cuda._function, cuda._stream, cuda._capability, nvrtc.compile_kernel, nvrtc._cubin):
        cached.cache_clear()
    faults._WATCHES.clear()


@contextmanager
def installed() -> Iterator[Any]:
    """Put the stand-in in CuPy's place, and yield it. Nothing that was loaded by the one serves the other."""
    pinned = ModuleType("cupyx")
    vars(pinned)["empty_pinned"] = lambda shape, dtype: np.empty(shape, dtype).view(Pinned)
    _forget()
    READS.clear()
    with pytest.MonkeyPatch.context() as patch:
        module = _module()
        patch.setitem(sys.modules, "cupy", module)
        patch.setitem(sys.modules, "cupyx", pinned)
        patch.delitem(sys.modules, _FRAMEWORK, raising=False)
        yield module
        sys.modules.pop(_FRAMEWORK, None)
    _forget()
