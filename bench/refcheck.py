"""The check before a result is written: sampled rows against float64, under the oracle's own rules.

No array of (queries, keys) of the whole problem is made. The oracle says for a sampled query which chunks it may choose
from and which keys it then sees; out, lse and dq of that row depend on nothing else. Errors and budgets are those of
`sparsemoc.testing.tolerance`. Dense attention is held against the same formulas over all keys that causality allows.
dk and dv of a key depend on every query that sees it: see `bench.refkeys`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.inputs import Inputs
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Stream
from sparsemoc.testing import oracle, tolerance
from sparsemoc.testing.sample import Sample

#: Sampled queries.
ROWS = 64

Floats = NDArray[Any]


class RefcheckError(Exception):
    """A result is wrong: it must not be published."""


@dataclass(frozen=True, eq=False)
class Question:
    """What was asked: one sample of a call.

    Attributes:
        name: of the problem, for errors.
        spec: with its stream.
        inputs: NumPy arrays, batch 1; the queries are the last of the stream.
    """

    name: str
    spec: RoutingSpec
    inputs: Inputs

    @property
    def stream(self) -> Stream:
        """The tokens."""
        assert self.spec.stream is not None, "every problem has one"
        return self.spec.stream

    @property
    def dtype(self) -> str:
        """Of the arrays."""
        return self.inputs.dtype

    @property
    def heads(self) -> int:
        """Query heads."""
        return int(self.inputs.q.shape[2])

    @property
    def group(self) -> int:
        """Query heads to a key head."""
        return self.heads // int(self.inputs.k.shape[2])

    @property
    def queries(self) -> int:
        """Number of queries."""
        return int(self.inputs.q.shape[1])

    @property
    def q_start(self) -> int:
        """Stream position of the first query."""
        return int(self.inputs.k.shape[1]) - self.queries

    def sampled(self, count: int) -> list[int]:
        """Return evenly spaced queries, the first and the last among them."""
        found: list[int] = np.unique(np.linspace(0, self.queries - 1, count).astype(int)).tolist()
        return found

    def query(self, number: int) -> Sample:
        """Return one query, with all heads, as the oracle takes it."""
        x = self.inputs
        start = self.q_start + number
        return Sample(self.spec, self.stream, x.q[0, number : number + 1], x.k[0], x.v[0], q_start=start)

    @cached_property
    def scores(self) -> Scores:
        """Scores of single queries."""
        return Scores(self)


@dataclass
class Error:
    """Largest error by magnitude, what the same rows may cost in the dtype, and the largest difference as it is."""

    error: float = 0.0
    budget: float = 0.0
    absolute: float = 0.0

    def add(self, name: str, sample: Sample, dtype: str, x: Floats, truth: Any, plain: Any, magnitude: Any) -> None:
        """Take in one more result of a sample."""
        band = tolerance.band(sample, name, dtype)
        self.error = max(self.error, tolerance.error(x, truth, magnitude))
        self.budget = max(self.budget, 2 * tolerance.error(plain, truth, magnitude) + band)
        self.absolute = max(self.absolute, float(np.abs(x.astype(np.float64) - truth).max()))


Errors = dict[str, Error]


def check(
    asked: Question,
    selected: NDArray[np.int32],
    results: Mapping[str, Floats],
    *,
    rows: int = ROWS,
    each: int | None = None,
    routes_as: str = "float32",
) -> dict[str, Any]:
    """Check routes, and out, lse and dq where given, on sampled queries.

    Args:
        asked: the problem.
        selected: the routes, (1, heads, queries, slots).
        results: "out" and "dq" (1, queries, heads, head_dim), "lse" (1, heads, queries).
        rows: how many queries to sample.
        each: heads that are looked at for a query, in turn; None for all.
        routes_as: dtype in which scores may have been rounded.

    Returns:
        The errors, as they go into a record; `rows` counts each query once for every head looked at.

    Raises:
        RefcheckError: a route or a value is wrong.
    """
    _check_finite(asked, results)
    errors: Errors = {name: Error() for name in results}
    routes, looked = "equal", 0
    for turn, number in enumerate(asked.sampled(rows)):
        query = asked.query(number)
        row = selected[0, :, number : number + 1]
        heads = _heads(asked, turn, each)
        if asked.spec.unit == "token":
            asked.scores.check_routes(query, row[:, 0], heads, routes_as)
        else:
            routes = "not checked: queries choose in blocks"
        seen = oracle.mask_of(query, row)[:, 0]
        for head in heads:
            _compare_row(asked, number, head, np.flatnonzero(seen[head]), results, errors)
            looked += 1
    return {"rows": looked, "routes": routes, **judged(asked.name, errors)}


def check_dense(asked: Question, results: Mapping[str, Floats], *, rows: int = ROWS) -> dict[str, Any]:
    """Check out, lse and dq of dense attention on sampled queries, a head of each in turn.

    Raises:
        RefcheckError: a value is wrong.
    """
    _check_finite(asked, results)
    errors: Errors = {name: Error() for name in results}
    numbers = asked.sampled(rows)
    for turn, number in enumerate(numbers):
        most = asked.q_start + number + 1 if asked.spec.causal == "token" else asked.inputs.k.shape[1]
        _compare_row(asked, number, turn % asked.heads, np.arange(most), results, errors)
    return {"rows": len(numbers), "routes": "all keys", **judged(asked.name, errors)}


def _check_finite(asked: Question, results: Mapping[str, Floats]) -> None:
    if absent := [name for name, x in results.items() if not np.isfinite(x).all()]:
        raise RefcheckError(f"{asked.name}: {', '.join(absent)} holds NaN or infinity")


def _heads(asked: Question, turn: int, each: int | None) -> list[int]:
    count = asked.heads if each is None else min(each, asked.heads)
    return sorted((turn * count + place) % asked.heads for place in range(count))


def _compare_row(
    asked: Question, number: int, head: int, keys: Any, results: Mapping[str, Floats], errors: Errors
) -> None:
    """Add the errors of one query of one head, which sees some keys."""
    x, row, one = asked.inputs, slice(number, number + 1), slice(head, head + 1)
    kv = slice(head // asked.group, head // asked.group + 1)
    part = Sample(asked.spec, asked.stream, x.q[0, row, one], x.k[0, keys, kv], x.v[0, keys, kv])
    got = {name: y[0, one, row] if name == "lse" else y[0, row, one] for name, y in results.items()}
    compare(part, np.ones((1, 1, len(keys)), bool), asked.dtype, got, x.d_out[0, row, one], errors)


def compare(sample: Sample, mask: Any, dtype: str, got: Mapping[str, Floats], d_out: Floats, errors: Errors) -> None:
    """Add the errors of a sample under a mask, (heads, queries, keys)."""
    d_lse = np.zeros((sample.heads, len(sample.q)))
    truth = tolerance.dense(sample, mask, d_out, d_lse, np.float64)
    plain = tolerance.rounded(tolerance.dense(sample, mask, d_out, d_lse, np.float32), dtype)
    magnitude = tolerance.magnitudes(sample, mask, d_out, d_lse, tolerance.unit_roundoff(dtype))
    for name, x in got.items():
        parts = (getattr(one, name) for one in (truth, plain, magnitude))
        errors[name].add(name, sample, dtype, x, *parts)


def judged(where: str, errors: Errors) -> dict[str, Any]:
    """Return the errors as they go into a record.

    Raises:
        RefcheckError: one is above its budget.
    """
    for name, found in errors.items():
        if not found.error <= found.budget:
            raise RefcheckError(f"{where}: {name} is off by {found.error:.3g}, the budget is {found.budget:.3g}")
    return {name: asdict(found) for name, found in errors.items()}


class Scores:
    """Mean keys in float64, made once, for the scores of single queries."""

    def __init__(self, asked: Question) -> None:
        bounds = np.array(oracle.chunk_bounds(asked.spec, asked.stream))
        k = asked.inputs.k[0]
        self._counts = np.diff(bounds)
        self._group = asked.group
        parts = [k[start:end].astype(np.float64) for start, end in pairwise(bounds.tolist())]
        self._means = np.array([part.mean(0) for part in parts])
        self._sizes = np.array([np.abs(part).mean(0) for part in parts])

    def check_routes(self, query: Sample, selected: Any, heads: list[int], rounded: str) -> None:
        """Raise unless a query's chunks, (heads, slots), are its best candidates, rounding of scores aside."""
        candidates = np.flatnonzero(query.candidates[0]) if len(query.units) else np.zeros(0, int)
        for head in heads:
            wanted = min(query.top_k[head], len(candidates))
            taken = selected[head][selected[head] >= 0]
            where = f"query {query.q_start}, head {head}"
            if not len(taken) == len(np.unique(taken)) == wanted or not np.isin(taken, candidates).all():
                raise RefcheckError(f"{where}: chunks {taken.tolist()} are not {wanted} of its candidates")
            left = np.setdiff1d(candidates, taken)
            if len(taken) and len(left):
                self._check_order(query.q[0, head].astype(np.float64), head // self._group, taken, left, where, rounded)

    def _check_order(self, q: Any, kv: int, taken: Any, left: Any, where: str, rounded: str) -> None:
        scores = self._means[:, kv] @ q
        # The bound of sparsemoc.testing.tolerance on a float32 score, for one query and nothing near the subnormals;
        # where scores are rounded to less, their inputs, their terms and they themselves are.
        few, u = tolerance.ROUNDOFF["float32"], tolerance.ROUNDOFF[rounded]
        terms = self._counts + 1 + len(q) + 18
        bound = 1.01 * (terms * few + (4 * u if u > few else 0)) * (self._sizes[:, kv] @ np.abs(q))
        if (scores[left] - bound[left]).max() > (scores[taken] + bound[taken]).min():
            raise RefcheckError(f"{where}: a chunk with a lower score was taken")
