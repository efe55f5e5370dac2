"""The arrays of the stand-in for CuPy: in NumPy's memory, on devices and streams of which one each is current.

They are as strict as CuPy's: a kernel runs on arrays of the current device alone, and nothing becomes a NumPy array
unasked. What the host reads is noted in `READS`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

#: What the host has read.
READS: list[str] = []
#: Compute capabilities of the devices: two of sm_90.
CAPABILITIES = ("90", "90")


class Device:
    """A device; `with` makes it current."""

    def __init__(self, index: int | None = None) -> None:
        self.id = DEVICES[-1] if index is None else index
        self.compute_capability = CAPABILITIES[self.id]

    def __enter__(self) -> Device:
        DEVICES.append(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        assert DEVICES.pop() == self.id


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
        STREAMS.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert STREAMS.pop() is self

    def synchronize(self) -> None:
        assert not self.capturing, "a stream that is captured cannot be waited for"
        self.synchronized += 1

    def is_capturing(self) -> bool:
        return self.capturing


#: Numbers of the devices, and the streams: the current one last.
DEVICES, STREAMS = [0], [Stream()]


class Pinned(np.ndarray[Any, Any]):
    """Pinned memory of the host."""


class ndarray:  # noqa: N801  CuPy's own name
    """An array: views share the memory of `memory`."""

    def __init__(self, memory: Any, device: int | None = None) -> None:
        assert isinstance(memory, np.ndarray)
        self.memory = memory
        self.device = Device(DEVICES[-1] if device is None else device)

    shape = property(lambda self: self.memory.shape)
    strides = property(lambda self: self.memory.strides)
    dtype = property(lambda self: self.memory.dtype)
    ndim = property(lambda self: self.memory.ndim)
    size = property(lambda self: self.memory.size)
    nbytes = property(lambda self: self.memory.nbytes)
    data = property(lambda self: SimpleNamespace(ptr=self.memory.ctypes.data))

    def like(self, memory: Any) -> ndarray:
        """Return an array on the same device."""
        return ndarray(np.asarray(memory), self.device.id)

    def here(self) -> Any:
        """Return the memory to a kernel, which runs on the current device."""
        assert self.device.id == DEVICES[-1], f"array on device {self.device.id}, current is {DEVICES[-1]}"
        return self.memory

    def transpose(self, *axes: Any) -> ndarray:
        return self.like(self.memory.transpose(*axes))

    def reshape(self, *shape: Any) -> ndarray:
        return self.like(self.memory.reshape(*shape))

    def view(self, dtype: Any) -> ndarray:
        return self.like(self.memory.view(dtype))

    def __getitem__(self, place: Any) -> ndarray:
        return self.like(self.memory[place])

    def __len__(self) -> int:
        return len(self.memory)

    def astype(self, dtype: Any, copy: bool = True) -> ndarray:
        return self if not copy and self.dtype == dtype else self.like(self.here().astype(dtype))

    def fill(self, value: Any) -> None:
        self.here().fill(value)

    def get(self, out: Any = None, blocking: bool = True) -> Any:
        if blocking:
            READS.append("get")
        assert blocking or type(out) is Pinned, "only a copy to pinned memory is asynchronous"
        if out is None:
            return self.memory.copy()
        out[...] = self.memory
        return out

    def tolist(self) -> Any:
        return self.get().tolist()

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __bool__(self) -> bool:
        READS.append("bool")
        return bool(self.memory)

    def __repr__(self) -> str:
        return repr(self.memory)

    def __abs__(self) -> ndarray:
        return self.like(abs(self.here()))

    def __mul__(self, other: ndarray) -> ndarray:
        return self.like(self.here() * other.here())

    def __lt__(self, other: Any) -> ndarray:
        return self.like(self.here() < other)

    def all(self) -> ndarray:
        return self.like(self.here().all())

    def __dlpack__(self, **given: Any) -> Any:
        assert self.dtype.kind != "V", "dtype is not supported for dlpack export"
        return self.memory.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # so that torch on a CPU takes it


ndarray.__module__ = "cupy"


def asarray(value: Any, dtype: Any = None) -> ndarray:
    """Return an array on the current device: itself, or a copy from another device or the host."""
    if isinstance(value, ndarray):
        found = value if value.device.id == DEVICES[-1] else ndarray(value.memory.copy())
        return found if dtype is None else found.astype(dtype, copy=False)
    return ndarray(np.array(value, dtype))


def from_dlpack(value: Any) -> ndarray:
    """Return an array in the memory of one of another library: of a CPU's as if it were the current device's."""
    kind, index = value.__dlpack_device__()
    on_cpu = SimpleNamespace(__dlpack__=value.__dlpack__, __dlpack_device__=lambda: (1, 0))  # where NumPy looks
    return ndarray(np.from_dlpack(on_cpu), None if kind == 1 else index)


def library() -> dict[str, Any]:
    """Return what CuPy has for arrays, by name."""
    strided = np.lib.stride_tricks.as_strided
    dtypes = {name: getattr(np, name) for name in ("int16", "int32", "int64", "float32")}
    return dtypes | {
        "ndarray": ndarray,
        "asarray": asarray,
        "asnumpy": lambda x: x.get(),
        "from_dlpack": from_dlpack,
        "empty": lambda shape, dtype: ndarray(np.empty(shape, dtype)),
        "zeros": lambda shape, dtype: ndarray(np.zeros(shape, dtype)),
        "ascontiguousarray": lambda x: x.like(np.ascontiguousarray(x.here())),
        "clip": lambda x, low, high: x.like(np.clip(x.here(), low, high)),
        "lib": SimpleNamespace(
            stride_tricks=SimpleNamespace(as_strided=lambda x, *given: x.like(strided(x.memory, *given)))
        ),
    }
