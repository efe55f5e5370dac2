"""Crossover: from which length and up to which density Mixture of Contexts is faster than dense attention.

Measured on a grid by `python -m bench.crossover`, and read between the measured points. Let f = 1 / speedup, our time
in units of dense attention's. At one length dense attention takes one time, whatever the density, and we take a part
that every call pays (pooling, scores, selection) and a part for each kept pair: f = a + b * density. The two numbers,
neither of them negative, are fitted at every measured length by least squares of the relative error. Between two
lengths log f goes straight over log tokens; beyond the shortest and the longest it goes on as between the two next to
it, up to a factor of 2. Nothing is said of what lies farther out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from sparsemoc.spec.checks import real, whole
from sparsemoc.spec.errors import SpecError, describe

#: How far beyond the measured lengths and densities something is said.
REACH = 2.0
#: Halvings that find a density: more than the digits of a float.
_HALVINGS = 60


class Point(NamedTuple):
    """One measurement.

    Attributes:
        tokens: length of the stream, queries and keys.
        density: share of all pairs that was kept, in (0, 1].
        speedup: time of dense attention over that of one forward with its routing, same heads.
    """

    tokens: int
    density: float
    speedup: float


class _Line(NamedTuple):
    """f = fixed + each * density, at one length."""

    fixed: float
    each: float

    def at(self, density: float) -> float:
        return self.fixed + self.each * density


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """The measured points of one dtype and head_dim, and what they say of lengths and densities between them.

    Attributes:
        backend, architecture, device, versions: as in `Environment`.
        threads: of both sides; 0 where the device chooses.
        heads: of both sides.
        dtype, head_dim: of q, k and v.
        dense: the dense attention that was the fastest.
        points: the measurements, of each length two densities or more.
        command: what measured them; time: when, ISO 8601 in UTC.

    Raises:
        SpecError: a field breaks a rule.
    """

    backend: str
    architecture: str
    device: str
    versions: str
    threads: int
    heads: int
    dtype: str
    head_dim: int
    dense: str
    points: tuple[Point, ...]
    command: str
    time: str

    def __post_init__(self) -> None:
        for name in ("backend", "architecture", "device", "versions", "dtype", "dense", "command", "time"):
            if not isinstance(getattr(self, name), str):
                raise SpecError(f"Crossover: {name} must be a text, got {describe(getattr(self, name))}.")
        whole(self.threads, "Crossover: threads", least=0)
        whole(self.heads, "Crossover: heads", least=1)
        whole(self.head_dim, "Crossover: head_dim", least=1)
        object.__setattr__(self, "points", tuple(sorted(_point(values) for values in _list_of(self.points))))
        if self.densities[0] >= self.densities[1]:
            raise SpecError(
                "Crossover: points must hold two densities of each length, and a range of them that all lengths share, "
                f"got {describe([list(point) for point in self.points])}."
            )

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """The measured lengths, the shortest first."""
        return tuple(sorted({point.tokens for point in self.points}))

    @cached_property
    def densities(self) -> tuple[float, float]:
        """The least and the largest density between which every length was measured."""
        of = {tokens: [point.density for point in self.points if point.tokens == tokens] for tokens in self.lengths}
        return max(min(found) for found in of.values()), min(max(found) for found in of.values())

    @cached_property
    def misfit(self) -> float:
        """Largest relative difference of a measured speed-up from the one that is told at its length and density."""
        lines = dict(zip(self.lengths, self._lines, strict=True))
        return max(abs(lines[tokens].at(density) * speedup - 1) for tokens, density, speedup in self.points)

    def knows(self, tokens: float, density: float) -> bool:
        """Return whether something can be said: no farther beyond what was measured than a factor of 2."""
        return _near(tokens, self.lengths[0], self.lengths[-1]) and _near(density, *self.densities)

    def speedup(self, tokens: float, density: float, dense_pairs: float = 1.0) -> float | None:
        """Return how many times as fast as dense attention a forward is expected to be; None where it is unknown.

        Args:
            tokens, density: of the call.
            dense_pairs: share of all pairs that dense attention computes, taken to be that share of its time: a half
                where no query sees a later key.
        """
        return dense_pairs / self._share(tokens, density) if self.knows(tokens, density) else None

    def length(self, density: float, dense_pairs: float = 1.0) -> int | None:
        """Return the measured or interpolated length from which a density is faster than dense attention, and stays so.

        None where it is never so at the measured lengths, or the density is unknown. The shortest measured length
        says that it is faster at all of them. Arguments as for `speedup`.
        """
        if not _near(density, *self.densities):
            return None
        shares = [line.at(density) / dense_pairs for line in self._lines]
        slower = [index for index, share in enumerate(shares) if share >= 1]
        if not slower:
            return self.lengths[0]
        last = slower[-1]
        if last == len(shares) - 1:
            return None
        low, high = math.log(self.lengths[last]), math.log(self.lengths[last + 1])
        way = math.log(shares[last]) / (math.log(shares[last]) - math.log(shares[last + 1]))
        return min(math.floor(math.exp(low + way * (high - low))) + 1, self.lengths[last + 1])

    def density(self, tokens: float, dense_pairs: float = 1.0) -> float | None:
        """Return the largest measured or interpolated density that is faster than dense attention at a length.

        None where even the least measured one is not, or the length is unknown. Arguments as for `speedup`.
        """
        low, high = self.densities
        if not _near(tokens, self.lengths[0], self.lengths[-1]) or self._share(tokens, low) >= dense_pairs:
            return None
        if self._share(tokens, high) < dense_pairs:
            return high
        for _ in range(_HALVINGS):  # the share only grows with the density
            middle = (low + high) / 2
            low, high = (middle, high) if self._share(tokens, middle) < dense_pairs else (low, middle)
        return low

    def _share(self, tokens: float, density: float) -> float:
        """Return f: our time in units of dense attention's."""
        if len(self.lengths) == 1:
            return self._lines[0].at(density)
        after = next((i for i in range(1, len(self.lengths)) if tokens <= self.lengths[i]), len(self.lengths) - 1)
        low, high = math.log(self.lengths[after - 1]), math.log(self.lengths[after])
        way = (math.log(tokens) - low) / (high - low)
        start, end = (math.log(self._lines[i].at(density)) for i in (after - 1, after))
        return math.exp(start + way * (end - start))

    @cached_property
    def _lines(self) -> tuple[_Line, ...]:
        return tuple(_fit([point for point in self.points if point.tokens == tokens]) for tokens in self.lengths)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self) | {"points": [list(point) for point in self.points]}

    @classmethod
    def from_dict(cls, values: Any) -> Crossover:
        """Return the crossover of `to_dict`.

        Raises:
            SpecError: a field is absent, unknown, or breaks a rule.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise SpecError(f"Crossover: it must hold {', '.join(sorted(names))}, got {describe(values)}.")
        return cls(**values)


def _list_of(points: object) -> Iterable[Any]:
    if not isinstance(points, (list, tuple)) or not points:
        raise SpecError(f"Crossover: points must be a list of some points, got {describe(points)}.")
    return points


def _point(values: Any) -> Point:
    if not isinstance(values, (list, tuple)) or len(values) != len(Point._fields):
        raise SpecError(f"Crossover: a point must be tokens, density and speedup, got {describe(values)}.")
    tokens = whole(values[0], "Crossover: tokens of a point", least=1)
    density = real(values[1], "Crossover: density of a point", least=0.0, most=1.0)
    speedup = real(values[2], "Crossover: speedup of a point", least=0.0)
    if not density or not speedup:
        raise SpecError(f"Crossover: density and speedup of a point must be above 0, got {describe(list(values))}.")
    return Point(tokens, density, speedup)


def _near(value: float, low: float, high: float) -> bool:
    return low / REACH <= value <= high * REACH


def _fit(points: list[Point]) -> _Line:
    """Return the line, of no negative number, with the least sum of ((fixed + each * density) * speedup - 1)^2."""
    speedup = np.array([point.speedup for point in points])
    columns = np.stack([speedup, speedup * [point.density for point in points]], axis=1)
    fixed, each = np.linalg.lstsq(columns, np.ones(len(points)))[0].tolist()
    if fixed >= 0 and each >= 0:
        return _Line(fixed, each)
    # One of the two is 0 at the best point that has no negative number: the other is fitted alone.
    alone = (columns.sum(0) / (columns**2).sum(0)).tolist()
    return _Line(0.0, alone[1]) if fixed < 0 else _Line(alone[0], 0.0)


def nearest(crossovers: Iterable[Crossover], dtype: str, head_dim: int) -> Crossover | None:
    """Return the crossover of a dtype whose head_dim is the nearest by ratio, the smaller of two; None without any."""
    found = sorted((one for one in crossovers if one.dtype == dtype), key=lambda one: one.head_dim)
    return min(found, key=lambda one: abs(math.log(one.head_dim / head_dim)), default=None)
