"""Philox4x32-10 and the tables of route dropout: the random words that are the same on every backend.

Counter-based: the words are a function of (key, counter) alone, so any backend, in any order and with any sharding,
draws the same ones. The counter of route dropout is (batch, head, stream position, draw), the key is the seed's two
words.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Random123).
"""

from __future__ import annotations

import decimal
import operator

import numpy as np
import numpy.typing as npt

from sparsemoc.spec.errors import SpecError, describe
from sparsemoc.spec.host import host, is_cupy

Words = tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint32]]

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
#: Added to the key's words after each round: the golden ratio and sqrt(3) - 1, as 32-bit fractions.
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox(counter: tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike, npt.ArrayLike], key: tuple[int, int]) -> Words:
    """Return the four random words of each counter.

    Args:
        counter: four whole-number arrays or numbers that broadcast together; the low 32 bits of each count.
        key: low and high word, from `seed_key`.

    Returns:
        Four uint32 arrays of the broadcast shape.
    """
    mask, shift = np.uint64(_WORD), np.uint64(32)
    c0, c1, c2, c3 = (np.asarray(word).astype(np.uint64) & mask for word in counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        # Two 32-bit factors in uint64: the product is exact, its halves are the words.
        product0, product1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c2 = (product1 >> shift) ^ c1 ^ np.uint64(k0), (product0 >> shift) ^ c3 ^ np.uint64(k1)
        c1, c3 = product1 & mask, product0 & mask
        k0, k1 = (k0 + KEY_STEPS[0]) & _WORD, (k1 + KEY_STEPS[1]) & _WORD
    w0, w1, w2, w3 = np.broadcast_arrays(c0, c1, c2, c3)
    return w0.astype(np.uint32), w1.astype(np.uint32), w2.astype(np.uint32), w3.astype(np.uint32)


def seed_key(seed: object) -> tuple[int, int]:
    """Return the key of a seed: the low and the high word of seed mod 2**64. Arguments as for `seed_number`."""
    number = seed_number(seed)
    return number & _WORD, number >> 32


def seed_number(seed: object) -> int:
    """Return seed mod 2**64.

    Args:
        seed: an int of any sign and size, a NumPy integer, or a 0-d integer array of any library.

    Raises:
        SpecError: not a whole number.
    """
    try:
        # What answers to index() and is refused all the same: True, and in torch an array of one element.
        if isinstance(seed, bool) or getattr(seed, "ndim", None) or str(getattr(seed, "dtype", None)).endswith("bool"):
            raise TypeError
        value = host(seed) if is_cupy(seed) else seed  # CuPy's arrays do not answer to index()
        number = operator.index(value)  # type: ignore[arg-type]  # TypeError is how it answers for other types
    except TypeError:
        raise SpecError(
            f"seed must be a whole number or a 0-d integer array, got {describe(seed)}. Hint: seed=0."
        ) from None
    return number % 2**64


def poisson_table(lam: float, into_max: int) -> npt.NDArray[np.uint64]:
    """Return floor(2**32 * P(X <= t)) for t = 0 ... into_max - 1, X Poisson with mean `lam`.

    A uniform 32-bit word w draws min(X, into_max) as the number of entries <= w.

    Args:
        lam: mean, finite and >= 0.
        into_max: number of entries.

    Returns:
        uint64 (into_max,), ascending, at most 2**32 (reached only where lam is 0, and no word ever does).
    """
    if lam == 0:
        return np.full(into_max, 2**32, dtype=np.uint64)
    table = np.empty(into_max, dtype=np.uint64)
    # 50 digits and an exponent without practical bound: the floor is exact, and exp(-lam) of a large lam is not 0.
    with decimal.localcontext(decimal.Context(prec=50, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)) as context:
        context.clear_traps()
        mean = decimal.Decimal(lam)
        term = (-mean).exp()
        below = term
        for t in range(into_max):
            # P < 1 for every t, though its 50 digits may round to 1.
            table[t] = min(int(below * 2**32), 2**32 - 1)
            term = term * mean / (t + 1)
            below += term
    return table


def drop_counts(
    w0: npt.NDArray[np.uint32],
    w1: npt.NDArray[np.uint32],
    routes: npt.NDArray[np.integer],
    off: float,
    table: npt.NDArray[np.uint64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return how many routes drop-off takes and drop-in would add, from words 0 and 1 of draw 0.

    d = (w0 * floor(off * 2**16) * routes) >> 48 in 64 bits; m = number of table entries <= w1.

    Args:
        w0: the first word of draw 0.
        w1: its second word.
        routes: |R| of each query, below 2**16, so that the product stays below 2**64.
        off: p_max of the drop-off, within [0, 1].
        table: `poisson_table(into, into_max)`.

    Returns:
        d < max(routes, 1), and m before it is held to the number of chunks outside R; int64, the broadcast shape.
    """
    scaled = np.asarray(w0).astype(np.uint64) * np.uint64(int(off * 2**16))
    dropped = (scaled * np.asarray(routes).astype(np.uint64)) >> np.uint64(48)
    added = np.searchsorted(table, np.asarray(w1).astype(np.uint64), side="right")
    return dropped.astype(np.int64), np.asarray(added, dtype=np.int64)
