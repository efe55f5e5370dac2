"""Numbers of the emulated machine: 16-bit types in full, and the functions of floats and bits, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.cupy.emulated import THREADS, Array, library, random


def test_every_16_bit_number_comes_back() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    half, bfloat = np.empty(1 << 16, np.float32), np.empty(1 << 16, np.float32)
    half_again, bfloat_again = np.empty_like(patterns), np.empty_like(patterns)
    assert library()("values", half, bfloat, half_again, bfloat_again, grid=((1 << 16) // THREADS, 1, 1)) is None
    for got, again, wanted in (
        (half, half_again, patterns.view(np.float16).astype(np.float32)),
        (bfloat, bfloat_again, (patterns.astype(np.uint32) << 16).view(np.float32)),
    ):
        np.testing.assert_array_equal(got, wanted)
        number = ~np.isnan(wanted)
        np.testing.assert_array_equal(np.signbit(got), np.signbit(wanted))
        np.testing.assert_array_equal(again[number], patterns[number])
        np.testing.assert_array_equal(again[~number], 0x7FFF)


def nearest_bfloat(x: Array) -> Array:
    """Bits of the nearest bfloat16, of two at the same distance the even one, found among them all."""
    numbers = (np.arange(0x7F81, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    numbers[-1] = 2.0**128  # Where infinity stands for what comes after the largest.
    magnitude = np.minimum(np.abs(x.astype(np.float64)), 2.0**128)
    above = np.clip(np.searchsorted(numbers, magnitude), 1, None)
    gap = (numbers[above] - magnitude) - (magnitude - numbers[above - 1])
    nearest = np.where((gap > 0) | ((gap == 0) & (above % 2 == 1)), above - 1, above)
    return (nearest | np.where(np.signbit(x), 0x8000, 0)).astype(np.uint16)


def test_floats_round_to_the_nearest_16_bit_number() -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    bfloats = (random(1).integers(0, 0x7F80, 3000).astype(np.uint32) << 16).view(np.float32)
    midway = (bfloats.view(np.uint32) | 0x8000).view(np.float32)
    every_size = random(2).integers(0, 0x7F800000, 20000).astype(np.uint32).view(np.float32)
    ties = np.concatenate([(halves[1:] + halves[:-1]) / 2, midway])
    beside = [np.nextafter(ties, np.float32(side)) for side in (0, np.inf)]
    ends = [65504, 65519.996, 65520, 3.38e38, 3.3961775e38, 3.4e38, np.inf, 1e-45, 0, 2.0**-25]
    x = np.concatenate([every_size, random(3).normal(size=3000), ties, *beside, ends]).astype(np.float32)
    x = np.concatenate([x, -x])
    half, bfloat = np.empty(len(x), np.uint16), np.empty(len(x), np.uint16)
    pairs = np.empty((2, len(x)), np.uint32)
    assert (
        library()("roundings", x, len(x), half, bfloat, pairs[0], pairs[1], grid=(-(-len(x) // THREADS), 1, 1)) is None
    )
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(half, x.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(bfloat, nearest_bfloat(x))
    for pair, bits in zip(pairs, (half, bfloat), strict=True):
        np.testing.assert_array_equal(pair, bits.astype(np.uint32) | bits[::-1].astype(np.uint32) << 16)


def test_functions_of_numbers() -> None:
    special = np.array([np.nan, np.inf, -np.inf, 0, 1, -1, -126, -126.5, -149, 127.9, 128, 1e-40], np.float32)
    pairs = np.stack(np.meshgrid(special, special)).reshape(2, -1)
    x, y = np.concatenate([pairs, random().normal(scale=30, size=(2, 3000)).astype(np.float32)], axis=1).copy()
    count = len(x)
    got, integers = np.empty((4, count), np.float32), np.empty((4, count), np.uint32)
    assert library()("functions", x, y, count, got, integers, grid=(-(-count // THREADS), 1, 1)) is None
    with np.errstate(all="ignore"):
        power, logarithm = np.exp2(x.astype(np.float64)), np.log2(x.astype(np.float64))
        power[power < 2.0**-126] = 0
        np.testing.assert_allclose(got[0], power.astype(np.float32), rtol=3e-7)
        np.testing.assert_allclose(got[1], logarithm, rtol=3e-7, atol=1e-7)
    np.testing.assert_array_equal(got[2], np.fmax(x, y))
    np.testing.assert_array_equal(got[3], np.fmin(x, y))
    left, right = x.view(np.uint32), y.view(np.uint32)
    np.testing.assert_array_equal(integers[0], (left.astype(np.uint64) * right >> np.uint64(32)).astype(np.uint32))
    np.testing.assert_array_equal(integers[1], [int(bits).bit_count() for bits in left])
    np.testing.assert_array_equal(integers[2].view(np.int32), np.maximum(left.view(np.int32), right.view(np.int32)))
    np.testing.assert_array_equal(integers[3].view(np.int32), np.minimum(left.view(np.int32), right.view(np.int32)))


def test_the_callers_arithmetic_is_left_alone() -> None:
    """Threads that flush subnormal numbers to zero, as torch and JAX let them, compute as all others do."""
    torch = pytest.importorskip("torch", reason="it sets how a thread rounds")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor flushes nothing")
    try:
        test_every_16_bit_number_comes_back()
        tiny = torch.tensor([1e-39])
        assert (tiny * 0.5 == 0).all(), "the thread flushes still"
    finally:
        torch.set_flush_denormal(False)
