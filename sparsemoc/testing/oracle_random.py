"""The random words of route dropout, for the oracle: Philox4x32-10 in plain Python integers.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (the constants of Philox4x32).
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, localcontext
from functools import lru_cache

from sparsemoc.spec.routing import RouteDropout

_WORD = 2**32 - 1


@lru_cache(maxsize=65536)
def philox(counter: tuple[int, int, int, int], seed: int) -> tuple[int, int, int, int]:
    """Return the four words of a counter; the key is the low and the high word of seed mod 2^64."""
    c0, c1, c2, c3 = counter
    low, high = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (second >> 32) ^ c1 ^ low, second & _WORD, (first >> 32) ^ c3 ^ high, first & _WORD
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


@lru_cache(maxsize=1024)
def poisson_table(mean: float, most: int) -> tuple[int, ...]:
    """Return floor(2^32 * P(X <= t)) for t < most and X Poisson(mean), from 60 decimal digits."""
    with localcontext() as context:
        context.prec = 60
        lam, total, table = Decimal(mean), Decimal(0), []
        term = (-lam).exp()
        for t in range(most):
            total += term
            # P < 1 unless the mean is 0, though its 60 digits may round to 1; a threshold of 2^32 is never reached.
            table.append(min(int(total * 2**32), 2**32 - (mean > 0)))
            term = term * lam / (t + 1)
    return tuple(table)


def drop(
    dropout: RouteDropout,
    routed: Iterable[int],
    candidates: Iterable[int],
    place: tuple[int, int, int],
    seed: int,
) -> list[int]:
    """Return the routes after drop-off and drop-in, ascending.

    Args:
        dropout: off, into, into_max.
        routed: R, the chunks that the scores chose.
        candidates: C.
        place: (batch, head, stream position of the query or of its block's nominal first), all global.
        seed: any integer.
    """
    routed, candidates = sorted(routed), sorted(candidates)

    def word(draw: int, number: int) -> int:
        batch, head, position = place
        return philox((batch & _WORD, head & _WORD, position & _WORD, draw), seed % 2**64)[number]

    def order(chunk: int) -> tuple[int, int]:
        return word(1 + chunk // 4, chunk % 4), chunk

    lost = (word(0, 0) * int(dropout.off * 2**16) * len(routed)) >> 48
    won = sum(word(0, 1) >= threshold for threshold in poisson_table(dropout.into, dropout.into_max))
    others = sorted(set(candidates) - set(routed), key=order)
    return sorted(sorted(routed, key=order)[lost:] + others[:won])
