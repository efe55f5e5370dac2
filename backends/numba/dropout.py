"""Route dropout in compiled code: the same words and the same choices as `sparsemoc.spec.philox` defines."""

from __future__ import annotations

import numpy as np
from numba import njit

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@njit(nogil=True)
def philox_words(c0, c1, c2, c3, key0, key1):  # type: ignore[no-untyped-def]
    """Return the four words of Philox4x32-10, each in a uint64."""
    for _ in range(10):
        product0, product1 = c0 * _M0, c2 * _M1
        c0, c2 = (product1 >> _SHIFT) ^ c1 ^ key0, (product0 >> _SHIFT) ^ c3 ^ key1
        c1, c3 = product1 & _LOW, product0 & _LOW
        key0, key1 = (key0 + _W0) & _LOW, (key1 + _W1) & _LOW
    return c0, c1, c2, c3


@njit(nogil=True)
def _word(random, batch, head, position, chunk):  # type: ignore[no-untyped-def]
    """Return chunk's own word: word chunk mod 4 of draw 1 + chunk div 4."""
    words = philox_words(
        np.uint64(random[3] + batch), np.uint64(random[4] + head), np.uint64(position), np.uint64(1 + chunk // 4),
        np.uint64(random[1]), np.uint64(random[2]),
    )  # fmt: skip
    which = chunk % 4
    return words[0] if which == 0 else words[1] if which == 1 else words[2] if which == 2 else words[3]


@njit(nogil=True)
def _smaller(words, chunks, count, most, word, chunk):  # type: ignore[no-untyped-def]
    """Insert into a list sorted by (word, chunk), chunks coming in ascending order; return its length."""
    if count == most and word >= words[most - 1]:
        return count
    place = min(count, most - 1)
    while place > 0 and word < words[place - 1]:
        words[place], chunks[place] = words[place - 1], chunks[place - 1]
        place -= 1
    words[place], chunks[place] = word, chunk
    return min(count + 1, most)


@njit(nogil=True)
def drop_routes(random, batch, head, position, routes, candidates):  # type: ignore[no-untyped-def]
    """Return ascending routes after drop-off takes d of them and drop-in adds m other candidates."""
    _, key0, key1, batch_start, head_start, off, table = random
    w0, w1, _, _ = philox_words(
        np.uint64(batch_start + batch), np.uint64(head_start + head), np.uint64(position), np.uint64(0),
        np.uint64(key0), np.uint64(key1),
    )  # fmt: skip
    removed = np.int64((w0 * np.uint64(off) * np.uint64(len(routes))) >> np.uint64(48))
    added = 0
    for bound in table:
        added += 1 if w1 >= bound else 0
    gone, extra = np.empty(removed, np.int64), np.empty(added, np.int64)
    words = np.empty(len(gone) + len(extra) + 1, np.uint64)
    count = 0
    for chunk in routes:
        if removed > 0:
            count = _smaller(words, gone, count, removed, _word(random, batch, head, position, chunk), chunk)
    kept = np.empty(len(routes) + added, np.int64)
    total = 0
    for chunk in routes:
        if not np.any(gone == chunk):
            kept[total] = chunk
            total += 1
    count, at = 0, 0
    if added > 0:
        for span in range(len(candidates[0])):
            for chunk in range(candidates[0][span], candidates[1][span]):
                while at < len(routes) and routes[at] < chunk:
                    at += 1
                if at == len(routes) or routes[at] != chunk:
                    count = _smaller(words, extra, count, added, _word(random, batch, head, position, chunk), chunk)
    kept[total : total + count] = extra[:count]
    return np.sort(kept[: total + count])
