"""Fragments of the emulated machine, against the formulas of the PTX ISA and products by NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.cupy.emulated import SHARED, Array, library, random

LANES = np.arange(32)


# By the formulas of the PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".


def a_place(lane: Array, i: int) -> tuple[Array, Array]:
    group, thread = lane >> 2, lane % 4
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    return row, thread * 2 + (i & 1) + (0 if i < 4 else 8)


def b_place(lane: Array, i: int) -> tuple[Array, Array]:
    return lane % 4 * 2 + (i & 1) + (0 if i < 2 else 8), lane >> 2


def c_place(lane: Array, i: int) -> tuple[Array, Array]:
    return (lane >> 2) + (0 if i < 2 else 8), lane % 4 * 2 + (i & 1)


def bits_in(x: Array, half: bool) -> Array:
    """The bits of floats that the 16-bit type holds."""
    return x.astype(np.float16).view(np.uint16) if half else (x.view(np.uint32) >> 16).astype(np.uint16)


def held(x: Array, half: bool) -> Array:
    """Floats that the 16-bit type holds, near x."""
    return x.astype(np.float16).astype(np.float32) if half else (x.view(np.uint32) & 0xFFFF0000).view(np.float32)


def multiply(a: Array, b: Array, c: Array, half: bool) -> Array:
    """c + a b for (n, 16, 16), (n, 16, 8), (n, 16, 8), passed through fragments."""
    count = len(a)
    left, right = np.empty((count, 32, 8), np.uint16), np.empty((count, 32, 4), np.uint16)
    sums, out = np.empty((count, 32, 4), np.float32), np.empty_like(c)
    for i in range(8):
        left[:, :, i] = bits_in(a, half)[:, *a_place(LANES, i)]
    for i in range(4):
        right[:, :, i] = bits_in(b, half)[:, *b_place(LANES, i)]
        sums[:, :, i] = c[:, *c_place(LANES, i)]
    assert library()("products", left, right, sums, int(half), grid=(count, 1, 1), threads=32) is None
    for i in range(4):
        out[:, *c_place(LANES, i)] = sums[:, :, i]
    return out


def product(a: Array, b: Array, c: Array) -> Array:
    """The same in float32, depth by depth: products of 16-bit numbers are exact there."""
    total = c.copy()
    with np.errstate(all="ignore"):
        for k in range(16):
            total += a[:, :, k, None] * b[:, None, k]
    return total


def drawn(shape: tuple[int, ...], half: bool, seed: int) -> Array:
    return held(random(seed).normal(size=shape).astype(np.float32), half)


@pytest.mark.parametrize("half", [True, False], ids=["half", "bfloat"])
def test_a_product_puts_every_element_where_the_isa_says(half: bool) -> None:
    one_hot = np.eye(256, dtype=np.float32).reshape(256, 16, 16)
    numbers = np.tile(np.arange(128, dtype=np.float32).reshape(16, 8), (256, 1, 1))
    got = multiply(one_hot, numbers, np.zeros((256, 16, 8), np.float32), half)
    np.testing.assert_array_equal(got, one_hot @ numbers)


@pytest.mark.parametrize("half", [True, False], ids=["half", "bfloat"])
def test_a_product_sums_in_float(half: bool) -> None:
    a, b = drawn((20, 16, 16), half, 1), drawn((20, 16, 8), half, 2)
    c = random(3).normal(size=(20, 16, 8)).astype(np.float32)
    got = multiply(a, b, c, half)
    np.testing.assert_array_equal(got, product(a, b, c))
    np.testing.assert_allclose(got, a.astype(np.float64) @ b + c, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("half", [True, False], ids=["half", "bfloat"])
def test_a_product_keeps_infinities_nan_and_subnormals(half: bool) -> None:
    a, b = drawn((6, 16, 16), half, 4), drawn((6, 16, 8), half, 5)
    a[0, 3, 5], b[1, 7, 2], a[2, 1, 1], b[3] = np.inf, np.nan, -np.inf, 0
    a[3, 2, 2] = np.inf
    a[4] *= 2.0**-16 if half else 2.0**-127
    a = held(a, half)
    c = np.zeros((6, 16, 8), np.float32)
    c[5, 0, 0] = np.inf
    wanted = product(a, b, c)
    assert np.isnan(wanted[3, 2]).all()
    np.testing.assert_array_equal(multiply(a, b, c, half), wanted)


# By the ISA's description of ldmatrix.


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_spread_over_lanes(transposed: bool) -> None:
    memory = random().integers(0, 1 << 16, SHARED // 2).astype(np.uint16)
    offsets = (random(1).permutation(SHARED // 16)[:32] * 16).astype(np.int32)
    # Threads 0-7 hold the addresses of the rows of the first matrix, 8-15 of the second, and so on.
    matrices = np.stack([memory[at // 2 : at // 2 + 8] for at in offsets]).reshape(4, 8, 8)
    if transposed:
        matrices = matrices.transpose(0, 2, 1)
    got = np.empty((32, 4), np.uint32)
    assert library()("matrices", memory, len(memory), offsets, got, int(transposed), threads=32) is None
    low, high = (matrices[:, LANES // 4, LANES % 4 * 2 + i].T.astype(np.uint32) for i in (0, 1))
    np.testing.assert_array_equal(got, low | high << 16)
