"""The anchored pairs of a sample as few, large, disjoint rectangles: the work of a dense engine over ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsemoc.spec.ranges import Range, subtract

if TYPE_CHECKING:
    from sparsemoc.spec.sample_plan import SamplePlan


@dataclass(frozen=True, eq=False)
class Rectangles:
    """Queries q_lo ... q_hi - 1 against keys k_lo ... k_hi - 1, in stream positions.

    Where `banded` is true only the pairs with |i - j| <= reach count; under token causality only those with j <= i.
    """

    q_lo: NDArray[np.int64]
    q_hi: NDArray[np.int64]
    k_lo: NDArray[np.int64]
    k_hi: NDArray[np.int64]
    banded: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.q_lo)

    def pairs(self, reach: int, token_causal: bool) -> int:
        """Return how many (query, key) pairs the rectangles hold."""
        total = 0
        for q_lo, q_hi, k_lo, k_hi, banded in zip(self.q_lo, self.q_hi, self.k_lo, self.k_hi, self.banded, strict=True):
            if not banded and not (token_causal and k_hi > q_lo):
                total += int(q_hi - q_lo) * int(k_hi - k_lo)
                continue
            query = np.arange(q_lo, q_hi)
            first = np.maximum(k_lo, query - reach) if banded else k_lo
            stop = np.minimum(k_hi, query + reach + 1) if banded else k_hi
            stop = np.minimum(stop, query + 1) if token_causal else stop
            total += int(np.maximum(stop - first, 0).sum())
        return total


def rectangles(plan: SamplePlan) -> Rectangles:
    """Return the anchored pairs of a plan; neighbouring runs that share a key range share a rectangle."""
    done: list[tuple[int, int, int, int, bool]] = []
    growing: dict[tuple[int, int, bool], Range] = {}
    for run in range(len(plan.run_lo)):
        q_lo, q_hi = int(plan.run_lo[run]), int(plan.run_hi[run])
        pieces = {(lo, hi, False) for lo, hi in plan.static_ranges(run)}
        pieces |= {(lo, hi, True) for lo, hi in _band(plan, run, q_lo, q_hi)}
        kept: dict[tuple[int, int, bool], Range] = {}
        for piece in sorted(pieces):
            before = growing.pop(piece, None)
            joined = before is not None and before[1] == q_lo
            if before is not None and not joined:
                done.append((*before, *piece))
            kept[piece] = (before[0], q_hi) if before is not None and joined else (q_lo, q_hi)
        done += [(*span, *piece) for piece, span in growing.items()]
        growing = kept
    done += [(*span, *piece) for piece, span in growing.items()]
    done.sort()
    table = np.array(done, np.int64).reshape(-1, 5)
    return Rectangles(table[:, 0], table[:, 1], table[:, 2], table[:, 3], table[:, 4].astype(bool))


def _band(plan: SamplePlan, run: int, q_lo: int, q_hi: int) -> list[Range]:
    """Return the valid keys within reach of any query of the run that its static ranges do not hold."""
    if plan.reach < 0:
        return []
    near = [
        (max(start, q_lo - plan.reach), min(start + length, q_hi + plan.reach))
        for start, length in zip(plan.stream.bounds[:-1], plan.lengths, strict=True)
    ]
    return list(subtract([span for span in near if span[0] < span[1]], plan.static_ranges(run)))
