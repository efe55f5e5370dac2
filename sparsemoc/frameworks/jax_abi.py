"""XLA's C interface for typed FFI handlers, read by ctypes: no compiler is needed, and any Python function can answer.

The structures are those of `xla/ffi/api/c_api.h`, version 0.3, as far as they are read here. XLA promises that handlers
of an old version stay supported; `jax_bridge` tries the whole way before it is used.
"""

from __future__ import annotations

import ctypes
import traceback
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

#: The version that the structures were written for.
MAJOR, MINOR = 0, 3

_METADATA = 1  # XLA_FFI_Extension_Metadata
_STRING = 4  # XLA_FFI_AttrType_STRING
_INTERNAL = 13  # XLA_FFI_Error_Code_INTERNAL

#: XLA_FFI_DataType -> dtype, of the arrays that are passed.
_DTYPES = {
    4: np.dtype(np.int32),
    8: np.dtype(np.uint32),
    10: np.dtype(np.float16),
    11: np.dtype(np.float32),
    12: np.dtype(np.float64),
    16: np.dtype(ml_dtypes.bfloat16),
}

Floats = NDArray[Any]
#: What a handler runs: the text that names the call, its inputs, and its outputs to be filled.
Run = Callable[[str, list[Floats], list[Floats]], None]


def _struct(name: str, *fields: tuple[str, Any]) -> Any:
    """Return a structure of the interface: all but the plainest begin with their size and a chain of extensions."""
    head = (("struct_size", ctypes.c_size_t), ("extensions", ctypes.c_void_p))
    return type(name, (ctypes.Structure,), {"_fields_": [*head, *fields]})


class _Extension(ctypes.Structure):
    _fields_ = (("struct_size", ctypes.c_size_t), ("type", ctypes.c_int), ("next", ctypes.c_void_p))


class _Bytes(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


_Version = _struct("_Version", ("major", ctypes.c_int), ("minor", ctypes.c_int))


class _Metadata(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("version", _Version),
        ("traits", ctypes.c_uint32),
    )


class _MetadataExtension(ctypes.Structure):
    _fields_ = (("base", _Extension), ("metadata", ctypes.POINTER(_Metadata)))


_ErrorArguments = _struct("_ErrorArguments", ("message", ctypes.c_char_p), ("code", ctypes.c_int))
_CreateError = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_ErrorArguments))
_Api = _struct("_Api", ("version", _Version), ("internal", ctypes.c_void_p), ("create_error", _CreateError))
_Buffer = _struct(
    "_Buffer",
    ("dtype", ctypes.c_int),
    ("data", ctypes.c_void_p),
    ("rank", ctypes.c_int64),
    ("sizes", ctypes.POINTER(ctypes.c_int64)),
)
_Buffers = _struct(
    "_Buffers",
    ("count", ctypes.c_int64),
    ("types", ctypes.c_void_p),
    ("values", ctypes.POINTER(ctypes.POINTER(_Buffer))),
)
_Attributes = _struct(
    "_Attributes",
    ("count", ctypes.c_int64),
    ("types", ctypes.POINTER(ctypes.c_int)),
    ("names", ctypes.c_void_p),
    ("values", ctypes.POINTER(ctypes.POINTER(_Bytes))),
)
_CallFrame = _struct(
    "_CallFrame",
    ("api", ctypes.POINTER(_Api)),
    ("context", ctypes.c_void_p),
    ("stage", ctypes.c_int),
    ("inputs", _Buffers),
    ("outputs", _Buffers),
    ("attributes", _Attributes),
)
_Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_CallFrame))


def handler(run: Run) -> Any:
    """Return a handler that XLA can call from any of its threads. Who registers it must keep it alive.

    It takes the GIL while Python runs. Whatever `run` raises becomes an XLA error that holds the traceback: ctypes
    would print it and go on as if all were well.
    """

    def handle(pointer: Any) -> Any:
        frame = pointer.contents
        if _told_version(frame):
            return None
        try:
            run(_text(frame.attributes), _arrays(frame.inputs), _arrays(frame.outputs))
        except BaseException as error:  # noqa: BLE001  # nothing may pass into C
            return _error(frame.api, "".join(traceback.format_exception(error)))
        return None

    return _Handler(handle)


def capsule(made: Any) -> Any:
    """Return a handler as `jax.ffi.register_ffi_target` takes it."""
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return new(ctypes.cast(made, ctypes.c_void_p), None, None)


def _told_version(frame: Any) -> bool:
    """Answer XLA's question for the version of the interface, if this is no call but that question."""
    address = frame.extensions
    while address:
        extension = _Extension.from_address(address)
        if extension.type == _METADATA:
            metadata = _MetadataExtension.from_address(address).metadata.contents
            # An older XLA takes no newer version, and all that is read here was there before.
            minor = min(MINOR, frame.api.contents.version.minor) if frame.api else MINOR
            metadata.version.major, metadata.version.minor, metadata.traits = MAJOR, minor, 0
            return True
        address = extension.next
    return False


def _text(attributes: Any) -> str:
    """Return the one attribute of a call."""
    if attributes.count != 1 or attributes.types[0] != _STRING:
        raise TypeError(f"a call must come with one text, got {attributes.count} attributes")
    value = attributes.values[0].contents
    return ctypes.string_at(value.data, value.size).decode()


def _arrays(buffers: Any) -> list[Floats]:
    return [_array(buffers.values[index].contents) for index in range(buffers.count)]


def _array(buffer: Any) -> Floats:
    """Return the memory of a buffer, which lies in row-major order."""
    dtype = _DTYPES[buffer.dtype]
    shape = tuple(buffer.sizes[: buffer.rank])
    size = dtype.itemsize
    for length in shape:
        size *= length
    if not size:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, (ctypes.c_ubyte * size).from_address(buffer.data))


def _error(api: Any, text: str) -> Any:
    message = text.encode()
    arguments = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message, _INTERNAL)
    return api.contents.create_error(ctypes.byref(arguments))
