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

#: Of the devices: two of sm_90.
CAPABILITIES = ("90", "90")
#: Shared memory that a kernel may use unasked, and at all.
UNASKED, MOST_SHARED = 48 << 10, 227 << 10
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


class State(SimpleNamespace):
    """Current device and streams, innermost last."""

    devices: list[int]
    streams: list[Any]


class ndarray(np.ndarray[Any, Any]):  # noqa: N801  CuPy's own name
    """An array of the device that was current when it was made; views are on the same."""

    _device: int

    def __array_finalize__(self, source: Any) -> None:
        self._device = getattr(source, "_device", _STATE.devices[-1])

    @property
    def device(self) -> Any:
        return Device(self._device)

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.__array_interface__["data"][0])

    def get(self, out: Any = None, blocking: bool = True) -> Any:
        assert type(out) is Pinned or blocking, "only a copy to pinned memory is asynchronous"
        if out is None:
            return np.array(self)
        out[...] = self
        return out


class Pinned(np.ndarray[Any, Any]):
    """Pinned memory of the host."""


class Device:
    """A device; `with` makes it current."""

    def __init__(self, index: int | None = None) -> None:
        self.id = _STATE.devices[-1] if index is None else index
        self.compute_capability = CAPABILITIES[self.id]

    def __enter__(self) -> Device:
        _STATE.devices.append(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        assert _STATE.devices.pop() == self.id


class Stream:
    """A stream; `with` makes it current. `capturing` says whether a CUDA graph is being captured from it."""

    def __init__(self, ptr: int = 0) -> None:
        self.ptr, self.capturing, self.synchronized = ptr, False, 0

    @classmethod
    def from_external(cls, foreign: Any) -> Stream:
        version, ptr = foreign.__cuda_stream__()
        assert version == 0
        return cls(ptr)

    def __enter__(self) -> Stream:
        _STATE.streams.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert _STATE.streams.pop() is self

    def synchronize(self) -> None:
        assert not self.capturing, "a stream that is captured cannot be waited for"
        self.synchronized += 1

    def is_capturing(self) -> bool:
        return self.capturing


class Event:
    """An event: done once recorded, unless the stand-in is `busy` and nobody has waited."""

    def __init__(self, disable_timing: bool = False) -> None:
        self._recorded = self._waited = False

    def record(self) -> None:
        assert not _STATE.streams[-1].capturing
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
        stream = _STATE.streams[-1].ptr
        sys.modules["cupy"].launches.append(
            Launch(self.kernel, grid, block, tuple(args), shared_mem, allowed, stream, _STATE.devices[-1])
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


_STATE = State(devices=[0], streams=[Stream()])


def _module() -> Any:
    made: Any = ModuleType("cupy")
    made.__spec__, made.__version__ = ModuleSpec("cupy", None), "14.2.0"
    made.ndarray, made.RawModule, made.launches, made.busy = ndarray, RawModule, [], False
    made.empty = lambda shape, dtype: np.empty(shape, dtype).view(ndarray)
    made.zeros = lambda shape, dtype: np.zeros(shape, dtype).view(ndarray)
    made.asarray = lambda x: x if isinstance(x, ndarray) else np.array(x).view(ndarray)
    made.ascontiguousarray = lambda x: np.ascontiguousarray(x).view(ndarray)
    made.asnumpy = lambda x: np.array(x)
    made.cuda = SimpleNamespace(
        Device=Device,
        Stream=Stream,
        Event=Event,
        get_current_stream=lambda: _STATE.streams[-1],
        nvrtc=Nvrtc(),
        driver=SimpleNamespace(CUDADriverError=CUDADriverError),
        runtime=SimpleNamespace(CUDARuntimeError=CUDARuntimeError, getDeviceCount=lambda: len(CAPABILITIES)),
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
    with pytest.MonkeyPatch.context() as patch:
        module = _module()
        patch.setitem(sys.modules, "cupy", module)
        patch.setitem(sys.modules, "cupyx", pinned)
        yield module
    _forget()
