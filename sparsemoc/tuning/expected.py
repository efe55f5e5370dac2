"""What the reference says of sampled rows, and how far a correct result may be off: see `roundoff`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsemoc.backends import Problem, Result
from sparsemoc.backends.reference import BACKEND as REFERENCE
from sparsemoc.spec.layout import Layout
from sparsemoc.tuning.roundoff import Roundoff
from sparsemoc.tuning.sampled import Part, heads_of, parts_of, samples_of, spread, wide

Floats = NDArray[np.float64]


class Expected(NamedTuple):
    """Rows of a result.

    Attributes:
        name: of the result.
        place: their indices in it.
        truth: (rows, channels).
        allowed: (rows,) norm of a row's error at most; infinite where nothing can be said.
    """

    name: str
    place: tuple[Any, ...]
    truth: Floats
    allowed: Floats


def pooled(problem: Problem, k: Any, key_lengths: Any) -> list[Expected]:
    """Return the means of sampled chunks in float64. A backend sums n keys in float32, in any order, and divides."""
    found = []
    kv_heads = sorted({head // problem.group for head in heads_of(problem.heads)})
    for index, sample in samples_of(problem, key_lengths):
        own, base = sample.plan, first_chunk(problem, index)
        for chunk in spread(own.chunks, 8).tolist():
            lo, hi = int(own.chunk_bounds[chunk]), int(own.chunk_stop[chunk])
            for head in kv_heads:
                rows = wide(k[sample.row, sample.k_row + lo : sample.k_row + hi, head])
                if hi == lo:
                    rows = np.zeros((1, problem.head_dim))
                error = 1.01 * (len(rows) + 2) * 2.0**-24 * np.abs(rows).mean(axis=0) + 2.0**-100
                place = sample.row, head, slice(base + chunk, base + chunk + 1)
                found.append(Expected("centroids", place, rows.mean(axis=0)[None], norms(error[None])))
    return found


def first_chunk(problem: Problem, index: int) -> int:
    """Return the number of a sample's first chunk in the array of centroids."""
    return sum(one.chunks for one in problem.plan.samples[:index]) if problem.plan.packed else 0


def attended(problem: Problem, q: Any, k: Any, v: Any, layout: Layout, scale: float) -> list[Expected]:
    """Return out and lse of the sampled queries."""
    found = []
    for part in parts_of(problem, layout.key_lengths):
        keys, values = wide(k[part.keys]), wide(v[part.keys])
        for block in part.blocks:
            rows = _Rows(part, block, layout, wide(q[part.queries(block)]), keys, values, scale)
            found += rows.results()
    return found


def gradients(
    problem: Problem, q: Any, k: Any, v: Any, layout: Layout, scale: float, result: Any, d_out: Any, d_lse: Any
) -> list[Expected]:
    """Return dq of the sampled queries, and the dk and dv that they alone contribute."""
    found: list[Expected] = []
    sums: dict[tuple[int, int], _KeySums] = {}
    for part in parts_of(problem, layout.key_lengths):
        keys, values = wide(k[part.keys]), wide(v[part.keys])
        if (part.index, part.kv_head) not in sums:
            sums[part.index, part.kv_head] = _KeySums(part, keys.shape[1], values.shape[1])
        own = sums[part.index, part.kv_head]
        for block in part.blocks:
            rows = _Rows(part, block, layout, wide(q[part.queries(block)]), keys, values, scale)
            places = part.queries(block), part.logs(block)
            given = wide(result.out[places[0]]), wide(result.lse[places[1]]), wide(d_out[places[0]])
            found.append(rows.gradients(*given, None if d_lse is None else wide(d_lse[places[1]]), own))
    for own in sums.values():
        found += own.results()
    return found


class _Row(NamedTuple):
    """A query and the keys that it sees, with their softmax."""

    at: int
    keys: NDArray[np.int64]
    weights: Floats
    conditioning: float
    spread: float


@dataclass(frozen=True, eq=False)
class _Rows:
    """The queries of a block: q (queries, head_dim), k and v (keys of the sample, head_dim)."""

    part: Part
    block: tuple[int, int]
    whole: Layout
    q: Floats
    k: Floats
    v: Floats
    scale: float

    @property
    def roundoff(self) -> Roundoff:
        return Roundoff.of(self.part.problem)

    def by_reference(self, operation: str, dtype: str, *more: Any) -> Any:
        """Return what the reference gives for arrays of a dtype."""
        layout = self.part.layout(self.block, self.whole)
        problem = self.part.alone(self.block, layout.plan.spec.max_top_k, dtype)
        arrays = (array.astype(dtype)[None, :, None] for array in (self.q, self.k, self.v))
        return getattr(REFERENCE, operation)(problem, *arrays, layout, self.scale, *more)

    def both(self, operation: str, more: Any) -> Iterator[tuple[Floats, Floats]]:
        """Yield each result in float64, and how far the same in the working dtype is off, row by row.

        `more` gives the further arguments in a dtype.
        """
        truth = self.by_reference(operation, "float64", *more("float64"))
        double = self.part.problem.dtype == "float64"
        other = truth if double else self.by_reference(operation, "float32", *more("float32"))
        for exact, rounded in zip(truth, other, strict=True):
            # (1, rows, 1, channels), or lse (1, 1, rows)
            rows = (x.reshape(-1, x.shape[-1] if x.ndim == 4 else 1).astype(np.float64) for x in (exact, rounded))
            wanted, got = rows
            yield wanted, _certain(norms(apart(got, wanted)))

    def each(self, lse: Floats) -> Iterator[_Row]:
        """Yield every query that sees a key."""
        seen = self.part.layout(self.block, self.whole).dense_mask()[0, 0]
        for at, mask in enumerate(seen):
            keys = np.flatnonzero(mask)
            if len(keys):
                rows = self.k[keys]
                weights = np.exp(self.scale * (rows @ self.q[at]) - lse[at])
                conditioning = 1 + abs(self.scale) * float((np.abs(rows) @ np.abs(self.q[at])).max())
                if self.roundoff.limit(conditioning):
                    conditioning = np.inf
                spread = 0.0
                if self.roundoff.logits:
                    spread = abs(self.scale) * float(np.sqrt(((rows**2) @ (self.q[at] ** 2)).max()))
                yield _Row(at, keys, weights, conditioning, spread)

    def results(self) -> list[Expected]:
        """Return out and lse."""
        (out, out_error), (lse, lse_error) = self.both("attend", lambda dtype: ())
        unit = self.roundoff
        out_allowed, lse_allowed = 2 * out_error, 2 * lse_error
        for row in self.each(lse[:, 0]):
            values, more = self.v[row.keys], row.spread * unit.logits
            sums = unit.sums(self.k.shape[1], len(row.keys)) * row.conditioning
            sizes = norms(row.weights @ np.abs(values))
            squares = np.sqrt((row.weights**2 + unit.least**2) @ values**2)
            out_allowed[row.at] += sums * sizes
            out_allowed[row.at] += 4 * (unit.factors + more) * (norms(out[row.at]) + norms(squares))
            lse_allowed[row.at] += sums + unit.sums(0) * abs(lse[row.at, 0]) + 4 * more
        tiny = unit.tiny * out.shape[1] ** 0.5
        return [
            Expected("out", self.part.queries(self.block), out, _certain(out_allowed) + tiny),
            Expected("lse", self.part.logs(self.block), lse, _certain(lse_allowed)),
        ]

    def gradients(self, out: Floats, lse: Floats, d_out: Floats, d_lse: Floats | None, sums: _KeySums) -> Expected:
        """Return dq, and add what the block contributes to dk and dv."""

        def more(dtype: str) -> tuple[Any, ...]:
            def put(x: Floats) -> Any:
                return x.astype(dtype)[None, :, None] if x.ndim == 2 else x.astype(dtype)[None, None]

            return Result(put(out), put(lse)), put(d_out), None if d_lse is None else put(d_lse)

        (dq, dq_error), *of_keys = self.both("attend_backward", more)
        sums.add_truth(of_keys)
        unit, allowed = self.roundoff, 2 * dq_error
        delta = (d_out * out).sum(axis=1) - (0 if d_lse is None else d_lse)
        for row in self.each(lse):
            at, k, v, scale = row.at, self.k[row.keys], self.v[row.keys], abs(self.scale)
            # Of dS: with absolute values in place of all factors, and the squares of its terms.
            sizes = np.abs(v) @ np.abs(d_out[at]) + (np.abs(d_out[at] * out[at]).sum() + abs(delta[at]))
            sizes *= row.weights * row.conditioning
            squares = v**2 @ d_out[at] ** 2 + ((d_out[at] * out[at]) ** 2).sum() + delta[at] ** 2
            squares = row.weights**2 * squares + unit.least**2
            allowed[at] += unit.sums(k.shape[1], v.shape[1], len(k)) * scale * norms(sizes @ np.abs(k))
            root = scale * norms(np.sqrt(squares @ k**2))
            allowed[at] += 4 * (unit.factors + row.spread * unit.logits) * (norms(dq[at]) + root)
            sums.add(row, (scale * sizes, scale**2 * squares, self.q[at]), d_out[at])
        return Expected("dq", self.part.queries(self.block), dq, _certain(allowed) + unit.tiny * dq.shape[1] ** 0.5)


class _KeySums:
    """dk and dv of one key head of a sample, summed over sampled queries: values, errors of the reference, sizes."""

    def __init__(self, part: Part, head_dim: int, v_head_dim: int) -> None:
        self._part = part
        tokens = part.sample.plan.k_tokens
        self._truth = [np.zeros((tokens, width)) for width in (head_dim, v_head_dim)]
        self._sizes = [np.zeros((tokens, width)) for width in (head_dim, v_head_dim)]
        self._squares = [np.zeros((tokens, width)) for width in (head_dim, v_head_dim)]
        self._errors = [np.zeros(tokens), np.zeros(tokens)]
        self._rows = 0

    def add_truth(self, found: list[tuple[Floats, Floats]]) -> None:
        """Add the dk and dv of a block, and how far the reference in the working dtype is off."""
        for at, (truth, error) in enumerate(found):
            self._truth[at] += truth
            self._errors[at] += error

    def add(self, row: _Row, slopes: tuple[Floats, Floats, Floats], d_out: Floats) -> None:
        """Add the sizes of what a query contributes."""
        sizes, squares, q = slopes
        factor = 1 + row.spread
        self._rows += 1
        self._sizes[0][row.keys] += sizes[:, None] * np.abs(q)
        self._sizes[1][row.keys] += (row.weights * row.conditioning)[:, None] * np.abs(d_out)
        self._squares[0][row.keys] += factor**2 * squares[:, None] * q**2
        least = Roundoff.of(self._part.problem).least
        self._squares[1][row.keys] += factor**2 * (row.weights**2 + least**2)[:, None] * d_out**2

    def results(self) -> list[Expected]:
        """Return dk and dv."""
        unit, found = Roundoff.of(self._part.problem), []
        for at, name in enumerate(("dk", "dv")):
            truth = self._truth[at]
            sums = unit.sums(*(x.shape[1] for x in self._truth), self._rows)
            allowed = 2 * self._errors[at] + sums * norms(self._sizes[at])
            allowed += 4 * unit.factors * (norms(truth) + norms(np.sqrt(self._squares[at])))
            allowed += unit.tiny * truth.shape[1] ** 0.5
            found.append(Expected(name, self._part.keys, truth, _certain(allowed)))
        return found


def norms(rows: Floats) -> Any:
    """Return the Euclidean norms along the last axis."""
    return np.sqrt((rows**2).sum(axis=-1))


def apart(got: Floats, wanted: Floats) -> Floats:
    """Return got - wanted, 0 where both are the same infinity."""
    return np.where(got == wanted, 0, got - wanted)


def _certain(allowed: Floats) -> Floats:
    """Return errors that are allowed, infinite where none could be computed."""
    return np.where(np.isnan(allowed), np.inf, allowed)
