"""Whole results of a candidate against the default's, row by row, in the library and on the device of the arrays."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np

from sparsemoc.spec.host import dtype_name
from sparsemoc.tuning.expected import Expected, norms
from sparsemoc.tuning.sampled import read

#: Numbers to a piece: what is compared at a time.
PIECE = 2**18
#: A row that is off by more than this share of its norm is wrong, however uncertain the sampled rows were.
MOST = 0.25


class Whole:
    """One result of the default, and how far another's rows may be from its.

    Args:
        name: of the result.
        result: the default's; its last axis are the channels of a row, unless it is lse.
        expected: its sampled rows; those of lse have one channel.

    A row x may be off by C (|x| + typical), with typical the median norm of the rows (for lse: 1) and C the
    largest such share that the reference allows at sampled rows, at most `MOST`.
    """

    def __init__(self, name: str, result: Any, expected: list[Expected]) -> None:
        self._name, self._result = name, result
        with np.errstate(all="ignore"):
            self._rows = [self._sizes(piece) for piece in self._pieces(result)]
        self._typical = 1.0 if name == "lse" else _median(self._rows)
        own = [one for one in expected if one.name == name]
        self.share = min(MOST, max((self._allowed(one) for one in own), default=MOST))

    def _allowed(self, expected: Expected) -> float:
        """Return the largest share that is allowed at sampled rows."""
        sizes = norms(np.where(np.isfinite(expected.truth), expected.truth, 0))
        typical = 1.0 if self._name == "lse" else float(np.median(sizes[sizes > 0])) if (sizes > 0).any() else 1.0
        return float((expected.allowed / (sizes + typical)).max(initial=0.0))

    @np.errstate(all="ignore")
    def wrong(self, other: Any) -> str | None:
        """Return the first row of another's result that is too far off, or None."""
        places = list(self._places(self._result))
        for place, sizes, own, its in zip(
            places, self._rows, self._pieces(self._result), self._pieces(other), strict=True
        ):
            allowed = self.share * (sizes + self._typical)
            off = self._norms(own - its)
            bad = ~(off <= allowed)
            if bool(bad.any()):  # or both hold the same infinity or NaN, which is rare
                same = (own == its) | ((own != own) & (its != its))
                off = self._norms(_module(own).where(same, 0.0, own - its))
                bad = ~(off <= allowed)
            if bool(bad.any()):
                row = [int(n) for n in np.argwhere(read(bad))[0]]
                values = float(read(off[tuple(row)])), float(read(allowed[tuple(row)]))
                at = [place[0], place[1] + row[0], *row[1:]]
                return (
                    f"{self._name}{at} is {values[0]:.3g} off the default's, which may differ by {values[1]:.3g}; "
                    f"{int(bad.sum())} rows near it are"
                )
        return None

    def _sizes(self, piece: Any) -> Any:
        """Return the norms of the rows of a piece; 0 for those that are not finite."""
        sizes, module = self._norms(piece), _module(piece)
        return module.where(module.isfinite(sizes), sizes, 0.0)

    def _norms(self, piece: Any) -> Any:
        return abs(piece) if self._name == "lse" else _module(piece).einsum("...c,...c->...", piece, piece) ** 0.5

    def _places(self, array: Any) -> Iterator[tuple[int, int, int]]:
        """Yield (row of the batch, start, stop on the next axis) of each piece."""
        rows, length = array.shape[:2]
        step = max(1, PIECE // max(1, int(np.prod(array.shape[2:]))))
        for row in range(rows):
            for start in range(0, length, step):
                yield row, start, min(start + step, length)

    def _pieces(self, array: Any) -> Iterator[Any]:
        """Yield the pieces in float32 or float64: torch's where they are, other libraries' as NumPy arrays."""
        double = dtype_name(array) == "float64"
        for row, start, stop in self._places(array):
            piece = array[row, start:stop]
            if hasattr(piece, "detach"):
                yield piece.detach().double() if double else piece.detach().float()
            else:
                yield read(piece).astype(np.float64 if double else np.float32, copy=False)


def _module(array: Any) -> Any:
    return import_module("torch") if hasattr(array, "detach") else np


def _median(rows: list[Any]) -> float:
    """Return the median of the norms that are not 0, or 1 where all are."""
    flat = np.concatenate([read(piece).ravel() for piece in rows])
    flat = flat[flat > 0]
    return float(np.median(flat)) if len(flat) else 1.0


def unlike(name: str, got: Any, shape: tuple[int, ...], dtype: str) -> str | None:
    """Return how an array differs from what a result must be, or None."""
    if not hasattr(got, "shape") or not hasattr(got, "dtype"):
        return f"{name} must be an array, got {type(got).__name__}"
    found = tuple(got.shape), dtype_name(got)
    return None if found == (shape, dtype) else f"{name} must be {dtype} {list(shape)}, got {found[1]} {list(found[0])}"
