"""Rows of the caller's arrays, in any dtype and with any strides, to and from contiguous scratch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit
from numpy.typing import NDArray

from sparsemoc.backends.numba.intrinsics import contiguous, prefetch

#: float16 and bfloat16 reach the kernels as bits; the code says how to read them.
PLAIN, HALF, BRAIN = 0, 1, 2


def readable(array: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Return an array as the kernels read it, and its code: uint16 bits for a 16-bit float, else itself.

    The array comes with a leading axis of stride 0 and read-only, so that arrays of every layout have one type and one
    compilation serves all.
    """
    code = {"float16": HALF, "bfloat16": BRAIN}.get(array.dtype.name, PLAIN)
    return _strided(array, writeable=False), code


def writable(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as the kernels write it, with the same leading axis."""
    return _strided(array, writeable=True)


def _strided(array: NDArray[Any], writeable: bool) -> NDArray[Any]:
    bits = array.view(np.uint16) if array.dtype.itemsize == 2 else array
    view: NDArray[Any] = np.lib.stride_tricks.as_strided(
        bits, (2, *bits.shape), (0, *bits.strides), writeable=writeable
    )
    return view


def aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return uninitialised memory that starts on a cache line, with a line to spare behind it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 128, np.uint8)
    first = -raw.ctypes.data % 64
    array: NDArray[Any] = raw[first : first + size].view(dtype).reshape(shape)
    return array


@njit(nogil=True)
def float_of_half(bits):  # type: ignore[no-untyped-def]
    """Return the float32 of float16 bits."""
    # The exponent and mantissa land 13 bits up; one product moves the bias, and makes subnormals normal.
    magnitude = np.uint32(np.uint32(bits & np.uint16(0x7FFF)) << np.uint32(13))
    scaled = np.float32(magnitude.view(np.float32) * np.float32(5.192296858534828e33))
    special = np.uint32(magnitude | np.uint32(0x7F800000))
    finite = magnitude < np.uint32(0x0F800000)
    sign = np.uint32(np.uint32(bits & np.uint16(0x8000)) << np.uint32(16))
    return np.uint32((scaled.view(np.uint32) if finite else special) | sign).view(np.float32)


@njit(nogil=True)
def half_of_float(value):  # type: ignore[no-untyped-def]
    """Return the float16 bits of a float32, rounded to nearest even."""
    bits = np.float32(value).view(np.uint32)
    sign = np.uint16(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000))
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    if magnitude > np.uint32(0x7F800000):
        return np.uint16(sign | np.uint16(0x7E00))
    if magnitude >= np.uint32(0x477FF000):
        return np.uint16(sign | np.uint16(0x7C00))
    if magnitude < np.uint32(0x38800000):
        # Below the smallest normal number: adding 1/2 leaves the rounded subnormal in the low bits.
        small = np.float32(magnitude.view(np.float32) + np.float32(0.5)).view(np.uint32)
        return np.uint16(sign | np.uint16(small - np.uint32(0x3F000000)))
    odd = np.uint32(np.uint32(magnitude >> np.uint32(13)) & np.uint32(1))
    rounded = np.uint32(magnitude - np.uint32(0x38000000) + np.uint32(0xFFF) + odd)
    return np.uint16(sign | np.uint16(rounded >> np.uint32(13)))


@njit(nogil=True)
def float_of_brain(bits):  # type: ignore[no-untyped-def]
    """Return the float32 of bfloat16 bits."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(nogil=True)
def brain_of_float(value):  # type: ignore[no-untyped-def]
    """Return the bfloat16 bits of a float32, rounded to nearest even."""
    bits = np.float32(value).view(np.uint32)
    if np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        return np.uint16(np.uint32(bits >> np.uint32(16)) | np.uint32(0x40))
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


#: Rows from a row that is read to the one that is asked for meanwhile.
AHEAD = 12


@njit(nogil=True)
def fetch_ahead(source, token, head):  # type: ignore[no-untyped-def]
    """Ask for a row of (., tokens, heads, width) some tokens ahead: with heads between, no hardware does it."""
    place = source.ctypes.data + (token + AHEAD) * source.strides[1] + head * source.strides[2]
    if source.strides[3] == source.itemsize and token + AHEAD < source.shape[1]:
        prefetch(place, source.shape[3] * source.itemsize)


@njit(nogil=True)
def _load(target, row, source, code, factor):  # type: ignore[no-untyped-def]
    width = source.shape[0]
    if code == 1:
        for column in range(width):
            target[row, column] = float_of_half(np.uint16(source[column])) * factor
    elif code == 2:
        for column in range(width):
            target[row, column] = float_of_brain(np.uint16(source[column])) * factor
    else:
        for column in range(width):
            target[row, column] = source[column] * factor
    for column in range(width, target.shape[1]):
        target[row, column] = 0


@njit(nogil=True)
def load_row(target, row, source, code, factor):  # type: ignore[no-untyped-def]
    """Copy a row of the caller's array to `target[row]` times a factor; columns beyond the source become 0."""
    if source.strides[0] == source.itemsize:
        # The same loop over elements side by side, which the compiler vectorises.
        _load(target, row, carray(contiguous(source), source.shape), code, factor)
    else:
        _load(target, row, source, code, factor)


@njit(nogil=True)
def _store(target, source, row, code, factor):  # type: ignore[no-untyped-def]
    width = target.shape[0]
    if code == 1:
        for column in range(width):
            target[column] = half_of_float(np.float32(source[row, column] * factor))
    elif code == 2:
        for column in range(width):
            target[column] = brain_of_float(np.float32(source[row, column] * factor))
    else:
        for column in range(width):
            target[column] = source[row, column] * factor


@njit(nogil=True)
def store_row(target, source, row, code, factor):  # type: ignore[no-untyped-def]
    """Copy the front of `source[row]` times a factor to a row of the caller's array."""
    if target.strides[0] == target.itemsize:
        _store(carray(contiguous(target), target.shape), source, row, code, factor)
    else:
        _store(target, source, row, code, factor)
