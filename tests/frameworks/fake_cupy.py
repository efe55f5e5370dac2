"""A stand-in for CuPy where there is no GPU: its arrays in NumPy's memory, on devices of which one is current.

It is as strict as CuPy: a kernel runs on arrays of the current device alone, nothing becomes a NumPy array unasked, and
what the host reads is noted in `READS`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

#: What the host has read.
READS: list[str] = []
_CURRENT = [0]


class Device:
    """A device, current within a `with` block."""

    def __init__(self, index: int = -1) -> None:
        self.id = _CURRENT[-1] if index < 0 else index

    def __enter__(self) -> Device:
        _CURRENT.append(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        assert _CURRENT.pop() == self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


class Stream:
    """A stream by its pointer; the default one's is 0."""

    def __init__(self, pointer: int = 0, capturing: bool = False) -> None:
        self.ptr, self.capturing = pointer, capturing

    def is_capturing(self) -> bool:
        return self.capturing


class ndarray:  # noqa: N801  CuPy's own name
    """An array: views share the memory of `memory`."""

    def __init__(self, memory: Any, device: int | None = None) -> None:
        assert isinstance(memory, np.ndarray)
        self.memory = memory
        self.device = Device(_CURRENT[-1] if device is None else device)

    shape = property(lambda self: self.memory.shape)
    strides = property(lambda self: self.memory.strides)
    dtype = property(lambda self: self.memory.dtype)
    ndim = property(lambda self: self.memory.ndim)
    size = property(lambda self: self.memory.size)
    nbytes = property(lambda self: self.memory.nbytes)

    def like(self, memory: Any) -> ndarray:
        """Return an array on the same device."""
        return ndarray(np.asarray(memory), self.device.id)

    def here(self) -> Any:
        """Return the memory to a kernel, which runs on the current device."""
        assert self.device.id == _CURRENT[-1], f"array on device {self.device.id}, current is {_CURRENT[-1]}"
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

    def get(self) -> Any:
        READS.append("get")
        return self.memory.copy()

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
        found = value if value.device.id == _CURRENT[-1] else ndarray(value.memory.copy())
        return found if dtype is None else found.astype(dtype, copy=False)
    return ndarray(np.array(value, dtype))


def from_dlpack(value: Any) -> ndarray:
    """Return an array in the memory of one of another library: of a CPU's as if it were the current device's."""
    kind, index = value.__dlpack_device__()
    on_cpu = SimpleNamespace(__dlpack__=value.__dlpack__, __dlpack_device__=lambda: (1, 0))  # where NumPy looks
    return ndarray(np.from_dlpack(on_cpu), None if kind == 1 else index)


def _module() -> ModuleType:
    module: Any = ModuleType("cupy")
    module.ndarray, module.asarray, module.from_dlpack = ndarray, asarray, from_dlpack
    module.clip = lambda x, low, high: x.like(np.clip(x.here(), low, high))
    module.ascontiguousarray = lambda x: x.like(np.ascontiguousarray(x.here()))
    for name in ("int16", "int32", "int64", "float32"):
        setattr(module, name, getattr(np, name))
    module.cuda = ModuleType("cupy.cuda")
    module.cuda.Device = Device
    module.cuda.get_current_stream = lambda: Stream(0)
    module.lib = ModuleType("cupy.lib")
    module.lib.stride_tricks = ModuleType("cupy.lib.stride_tricks")
    module.lib.stride_tricks.as_strided = lambda x, *given: x.like(np.lib.stride_tricks.as_strided(x.memory, *given))
    return module  # type: ignore[no-any-return]


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Put the stand-in in the place of CuPy, for modules that are imported from now on."""
    monkeypatch.setitem(sys.modules, "cupy", _module())
    monkeypatch.delitem(sys.modules, "sparsemoc.frameworks.cupy", raising=False)
    READS.clear()
    yield sys.modules["cupy"]
    sys.modules.pop("sparsemoc.frameworks.cupy", None)
