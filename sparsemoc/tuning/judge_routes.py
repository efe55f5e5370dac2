"""Whether a selection is right: routing units against the reference, and by their scores where it differs.

Another order of summation may swap chunks whose scores are close. With u = 2^-24 a float32 score of d products with the
mean of b queries is within

    bound = 1.01 (b + d + 18) u  sum_l mean|q_l| |centroid_l|

of the exact one; it is exact where no rounding can happen (multiples of 2^-8 whose products sum below 2^8), and there
the lower chunk must win a tie. A chunk that surely precedes a chosen one must be chosen too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends import Problem, Randomness
from sparsemoc.backends.reference import BACKEND as REFERENCE
from sparsemoc.spec.errors import LayoutError
from sparsemoc.spec.layout import Layout
from sparsemoc.tuning.expected import first_chunk
from sparsemoc.tuning.sampled import Part, heads_of, read, samples_of, spread, wide

Ints = NDArray[np.int64]

#: Units to a sample that are looked at, and of those that differ from another selection.
UNITS, DIFFERING = 16, 512


class Unit(NamedTuple):
    """A routing unit of one head: its members are the only block of the part."""

    part: Part
    position: int


class RouteJudge:
    """The arguments of `Backend.route`, against which selections are judged."""

    def __init__(
        self, problem: Problem, q: Any, centroids: Any, key_lengths: Any, randomness: Randomness | None
    ) -> None:
        self._problem, self._q, self._centroids = problem, q, centroids
        self._key_lengths, self._randomness = key_lengths, randomness

    def whole(self, selected: Any) -> str | None:
        """Return what is wrong with the structure of a selection, or at sampled units."""
        try:
            Layout(read(selected), self._problem.plan, self._lengths()).validate()
        except LayoutError as error:
            return str(error).splitlines()[0]
        return self._first_wrong(selected, self._sampled())

    def against(self, selected: Any, other: Any) -> str | None:
        """Return what is wrong with a selection where it differs from another, which is right as far as is known."""
        differs = (selected != other).any(-1)
        # A tensor's own `nonzero` gives rows, an array's a tuple of columns.
        places = read(differs.nonzero()) if hasattr(differs, "detach") else np.argwhere(read(differs))
        if not len(places):
            return None
        samples = self._problem.plan.batch(self._problem.batch, self._lengths())
        units: dict[tuple[int, int, int], Unit] = {}
        for row, head, query in places[spread(len(places), DIFFERING)].tolist():
            at = [s.q_row <= query < s.q_row + s.plan.q_tokens and s.row == row for s in samples]
            index = at.index(True)
            own, position = samples[index].plan, query - samples[index].q_row + samples[index].plan.q_start
            unit = int(np.searchsorted(own.unit_lo, position, side="right")) - 1
            if unit < 0 or position >= own.unit_hi[unit]:
                return f"selected[{row}, {head}, {query}] differs from the default's, where nothing is routed"
            units[index, head, unit] = self._unit(index, samples[index], head, unit)
        return self._first_wrong(selected, units.values())

    def _lengths(self) -> Any:
        return None if self._key_lengths is None else read(self._key_lengths)

    def _sampled(self) -> Iterator[Unit]:
        for index, sample in samples_of(self._problem, self._key_lengths):
            count = len(sample.plan.unit_lo)
            for unit in spread(count, UNITS).tolist() if count else ():
                for head in heads_of(self._problem.heads):
                    yield self._unit(index, sample, head, unit)

    def _unit(self, index: int, sample: Any, head: int, unit: int) -> Unit:
        own = sample.plan
        block = int(own.unit_lo[unit]) - own.q_start, int(own.unit_hi[unit]) - own.q_start
        return Unit(Part(self._problem, index, sample, head, (block,)), int(own.unit_lo[unit]))

    def _first_wrong(self, selected: Any, units: Iterable[Unit]) -> str | None:
        for unit in units:
            row, head, queries = unit.part.logs(unit.part.blocks[0])
            rows = read(selected[row, head, queries])
            reason = self._wrong(unit, rows)
            if reason is not None:
                return f"selected[{row}, {head}, {queries.start}] is {rows[0].tolist()}: {reason}"
        return None

    def _wrong(self, unit: Unit, rows: NDArray[np.int32]) -> str | None:
        """Return what is wrong with the rows (members, slots) of a unit."""
        taken = rows[0][rows[0] >= 0].astype(np.int64)
        candidates = unit.part.sample.plan.candidates(unit.position)
        if (rows != rows[0]).any() or (rows[0][: len(taken)] != taken).any() or (np.diff(taken) <= 0).any():
            return "it does not ascend, or goes on after a -1, or differs among the members of a block"
        if not np.isin(taken, candidates).all():
            return "not all are candidates"
        wanted = self._by_reference(unit, self._randomness)
        if np.array_equal(taken, wanted):
            return None
        if len(taken) != len(wanted):
            return f"the reference takes {wanted.tolist()}"
        plain = wanted if self._randomness is None else self._by_reference(unit, None)
        scores, bounds = self._scores(unit, candidates)
        own = np.isin(candidates, taken if self._randomness is None else plain)
        if self._randomness is None:
            wrong = _precedes(scores, bounds, candidates)[~own][:, own].any()
        else:  # the same words fall on the same routes, if these are beyond doubt
            wrong = _precedes(scores, bounds, candidates)[own][:, ~own].all()
        return f"the reference takes {wanted.tolist()}, and no rounding explains another choice" if wrong else None

    def _by_reference(self, unit: Unit, randomness: Randomness | None) -> Ints:
        """Return the routes that the reference takes."""
        part, problem = unit.part, self._problem
        (block,) = part.blocks
        alone = part.alone(block, problem.plan.spec.top_k_of(problem.heads)[part.head], "float32")
        if randomness is not None:
            first = randomness.batch_start + part.index, randomness.head_start + part.head
            randomness = Randomness(randomness.key[0] | randomness.key[1] << 32, *first)
        q = read(self._q[part.queries(block)])[None, :, None]
        selected = REFERENCE.route(alone, q, self._means(part)[None, None], part.lengths(self._key_lengths), randomness)
        routes: Ints = selected[0, 0, 0][selected[0, 0, 0] >= 0].astype(np.int64)
        return routes

    def _means(self, part: Part) -> NDArray[np.float32]:
        """Return the centroids of a part, (chunks, head_dim)."""
        first = first_chunk(self._problem, part.index)
        means = self._centroids[part.sample.row, part.kv_head, first : first + part.sample.plan.chunks]
        return read(means).astype(np.float32)

    def _scores(self, unit: Unit, candidates: Ints) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the candidates' scores and their bounds."""
        members = wide(self._q[unit.part.queries(unit.part.blocks[0])])
        means = wide(self._means(unit.part)[candidates])
        mean, size = members.mean(axis=0), np.abs(members).mean(axis=0)
        products = np.abs(means) @ size
        bounds = 1.01 * (len(members) + len(mean) + 18) * 2.0**-24 * products + 2.0**-126 * len(mean)
        fine = all((x * 2**8 == np.round(x * 2**8)).all() for x in (members, mean)) and (size < 2**16).all()
        exact = fine & (means * 2**8 == np.round(means * 2**8)).all(axis=1) & (products < 2**8)
        return means @ mean, np.where(exact, 0, np.where(products < 2.0**126, bounds, np.inf))


def _precedes(scores: NDArray[np.float64], bounds: NDArray[np.float64], chunks: Ints) -> NDArray[np.bool_]:
    """Return as (first, second) which candidates surely precede which."""
    margins = bounds[:, None] + bounds[None, :]
    above = scores[:, None] - scores[None, :] > margins
    tied = (scores[:, None] == scores[None, :]) & (margins == 0) & (chunks[:, None] < chunks[None, :])
    found: NDArray[np.bool_] = above | tied
    return found
