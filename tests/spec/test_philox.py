"""The random words of route dropout: published answers, and the tables against exact sums."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsemoc.spec.errors import SpecError
from sparsemoc.spec.philox import drop_counts, philox, poisson_table, seed_key

WORD = st.integers(0, 2**32 - 1)


# Source: kat_vectors of Random123 1.14, the three lines "philox4x32 10".
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter: str, key: str, words: str) -> None:
    c0, c1, c2, c3 = (int(word, 16) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    assert " ".join(f"{int(word):08x}" for word in philox((c0, c1, c2, c3), (k0, k1))) == words


def test_counters_broadcast_and_each_element_stands_for_itself() -> None:
    batch, position = np.arange(3, dtype=np.int32)[:, None], np.arange(5, dtype=np.int64)
    words = philox((batch, 7, position, 1), (11, 12))
    for word in words:
        assert word.shape == (3, 5)
        assert word.dtype == np.uint32
    for b in range(3):
        for p in range(5):
            alone = philox((b, 7, p, 1), (11, 12))
            assert [int(word) for word in alone] == [int(word[b, p]) for word in words]


@given(st.integers(-(2**70), 2**70))
def test_seed_key_is_the_seed_mod_two_to_the_64(seed: int) -> None:
    low, high = seed_key(seed)
    assert 0 <= low < 2**32
    assert 0 <= high < 2**32
    assert low + 2**32 * high == seed % 2**64


@pytest.mark.parametrize("seed", [np.int32(5), np.uint64(5), np.array(5), np.array(5, dtype=np.uint8)])
def test_seed_key_takes_numpy_whole_numbers(seed: object) -> None:
    assert seed_key(seed) == (5, 0)


def test_seed_key_of_a_negative_numpy_integer() -> None:
    assert seed_key(np.int64(-1)) == (2**32 - 1, 2**32 - 1)


@pytest.mark.parametrize("seed", [1.0, "1", None, True, np.array([1]), np.array(True), np.float64(1)])
def test_seed_key_refuses_what_is_no_whole_number(seed: object) -> None:
    with pytest.raises(SpecError, match=r"^seed must be a whole number or a 0-d integer array, got .*Hint: seed=0\.$"):
        seed_key(seed)


@pytest.mark.parametrize("mean", [0.125, 1.0, 2.5, 30.0])
def test_poisson_table_against_exact_sums(mean: float) -> None:
    table = poisson_table(mean, 12)
    assert table.dtype == np.uint64
    # exp(mean) enclosed by its series: below, and below plus a bound on the rest.
    low = sum((Fraction(mean) ** n / math.factorial(n) for n in range(200)), Fraction(0))
    high = low + Fraction(1, 10**30)
    for t in range(12):
        part = sum((Fraction(mean) ** n / math.factorial(n) for n in range(t + 1)), Fraction(0))
        assert math.floor(2**32 * part / high) == math.floor(2**32 * part / low) == int(table[t])


def test_poisson_table_of_mean_zero_draws_nothing() -> None:
    assert poisson_table(0.0, 3).tolist() == [2**32] * 3
    assert poisson_table(1.0, 0).tolist() == []


@given(st.floats(0, 1e300), st.integers(0, 40))
def test_poisson_table_ascends_and_stays_in_range(mean: float, entries: int) -> None:
    table = [int(entry) for entry in poisson_table(mean, entries)]
    assert table == sorted(table)
    assert all(0 <= entry <= 2**32 for entry in table)


def test_a_poisson_number_is_never_certain_to_be_small() -> None:
    # P(X <= t) < 1, however near: the largest word still draws into_max.
    assert poisson_table(0.001, 60)[-1] == 2**32 - 1
    assert drop_counts(
        np.array([0], np.uint32), np.array([2**32 - 1], np.uint32), np.array([0]), 0.0, poisson_table(0.001, 60)
    )[1].tolist() == [60]


def test_poisson_table_of_a_large_mean() -> None:
    table = poisson_table(10_000.0, 10_400)
    assert table[0] == 0
    assert 0.49 < table[9_999] / 2**32 < 0.51
    assert table[10_399] / 2**32 > 0.9999


@given(WORD, WORD, st.integers(0, 2**16 - 1), st.floats(0, 1), st.floats(0, 20), st.integers(0, 9))
def test_drop_counts_by_the_formula(w0: int, w1: int, routes: int, off: float, mean: float, entries: int) -> None:
    table = poisson_table(mean, entries)
    dropped, added = drop_counts(np.array([w0], np.uint32), np.array([w1], np.uint32), np.array([routes]), off, table)
    assert dropped.tolist() == [(w0 * math.floor(off * 2**16) * routes) >> 48]
    assert added.tolist() == [sum(w1 >= int(entry) for entry in table)]
    assert dropped[0] < max(routes, 1)


def test_drop_counts_at_the_ends_of_the_words() -> None:
    table = poisson_table(1.0, 4)
    w = np.array([0, 2**32 - 1], np.uint32)
    dropped, added = drop_counts(w, w, np.array([65535, 65535]), 1.0, table)
    assert dropped.tolist() == [0, 65534]
    assert added.tolist() == [0, 4]
