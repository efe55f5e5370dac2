"""The check before a result is written: sampled rows against float64, under the oracle's own rules.

No array of (queries, keys) of the whole problem is made. The oracle says for a sampled query which chunks it may choose
from and which keys it then sees; out, lse and dq of that row depend on nothing else. Errors and budgets are those of
`sparsemoc.testing.tolerance`. dk and dv of a key depend on every query that sees it: they are compared whole on a small
copy of the case, and at full size by two identities, sum_j dv_j = sum_i d_out_i and sum <q, dq> = sum <k, dk>.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import sparsemoc as moc
from bench.cases import Case, Floats, Inputs, inputs
from sparsemoc.testing import oracle, tolerance
from sparsemoc.testing.sample import Sample

ROWS = 64
#: Tokens and heads of the small copy.
SMALL_TOKENS, SMALL_HEADS = 1024, 2
#: Most relative difference of the two sides of an identity, each a sum of millions of rounded numbers.
IDENTITY = 1e-4


class RefcheckError(Exception):
    """A result is wrong: it must not be published."""


@dataclass
class Error:
    """Largest error by magnitude, what the same rows may cost in dense float32, and the largest difference as it is."""

    error: float = 0.0
    budget: float = 0.0
    absolute: float = 0.0

    def add(self, name: str, sample: Sample, x: Floats, truth: Any, reference: Any, magnitude: Any) -> None:
        """Take in one more result of a sample."""
        band = tolerance.band(sample, name, "float32")
        self.error = max(self.error, tolerance.error(x, truth, magnitude))
        self.budget = max(self.budget, 2 * tolerance.error(reference, truth, magnitude) + band)
        self.absolute = max(self.absolute, float(np.abs(x - truth).max()))


def check(
    case: Case, given: Inputs, layout: moc.Layout, results: dict[str, Floats], rows: int = ROWS
) -> dict[str, Any]:
    """Check routes, and out, lse and dq where given, on sampled queries.

    Args:
        case, given: the problem.
        layout: of the whole call.
        results: "out" and "dq" (1, tokens, heads, head_dim), "lse" (1, heads, tokens).
        rows: how many queries to sample; each counts once for every head.

    Returns:
        The errors, as they go into a record.

    Raises:
        RefcheckError: a route or a value is wrong.
    """
    if absent := [name for name in results if not np.isfinite(results[name]).all()]:
        raise RefcheckError(f"{case.name}: {', '.join(absent)} holds NaN or infinity")
    q, k, v = given.q[0], given.k[0], given.v[0]
    scores = _Scores(case, k)
    errors = {name: Error() for name in results}
    positions = np.unique(np.linspace(0, case.tokens - 1, rows).astype(int))
    for position in positions.tolist():
        row = slice(position, position + 1)
        query = Sample(case.spec(), case.stream(), q[row], k, v, q_start=position)
        selected = layout.selected[0, :, row]
        scores.check_routes(query, selected[:, 0])
        seen = oracle.mask_of(query, selected)[:, 0]
        for head in range(case.heads):
            keys, one = np.flatnonzero(seen[head]), slice(head, head + 1)
            part = Sample(query.spec, query.stream, q[row, one], k[keys, one], v[keys, one])
            got = {name: x[0, one, row] if name == "lse" else x[0, row, one] for name, x in results.items()}
            _compare(part, got, given.d_out[0, row, one], errors)
    return {"rows": len(positions) * case.heads, "routes": "equal", **_judged(case.name, errors)}


def _compare(sample: Sample, got: dict[str, Floats], d_out: Floats, errors: dict[str, Error]) -> None:
    """Add the errors of a sample whose queries see every key they are given."""
    mask = np.ones((sample.heads, len(sample.q), len(sample.k)), bool)
    _compare_masked(sample, mask, got, d_out, errors)


def _compare_masked(sample: Sample, mask: Any, got: dict[str, Floats], d_out: Floats, errors: dict[str, Error]) -> None:
    d_lse = np.zeros((sample.heads, len(sample.q)))
    truth = tolerance.dense(sample, mask, d_out, d_lse, np.float64)
    reference = tolerance.dense(sample, mask, d_out, d_lse, np.float32)
    magnitude = tolerance.magnitudes(sample, mask, d_out, d_lse, tolerance.unit_roundoff("float32"))
    for name, x in got.items():
        errors[name].add(name, sample, x, getattr(truth, name), getattr(reference, name), getattr(magnitude, name))


def _judged(where: str, errors: dict[str, Error]) -> dict[str, Any]:
    for name, found in errors.items():
        if not found.error <= found.budget:
            raise RefcheckError(f"{where}: {name} is off by {found.error:.3g}, the budget is {found.budget:.3g}")
    return {name: asdict(found) for name, found in errors.items()}


class _Scores:
    """Mean keys in float64, made once, for the scores of single queries."""

    def __init__(self, case: Case, k: Floats) -> None:
        bounds = np.array(oracle.chunk_bounds(case.spec(), case.stream()))
        self._counts = np.diff(bounds)
        wide = k.astype(np.float64)
        self._means = np.add.reduceat(wide, bounds[:-1]) / self._counts[:, None, None]
        self._sizes = np.add.reduceat(np.abs(wide), bounds[:-1]) / self._counts[:, None, None]

    def check_routes(self, query: Sample, selected: Any) -> None:
        """Raise unless a query's chunks, (heads, slots), are its best candidates, float32 rounding aside."""
        candidates = np.flatnonzero(query.candidates[0]) if len(query.units) else np.zeros(0, int)
        wanted = min(query.top_k[0], len(candidates))
        for head, row in enumerate(selected):
            taken = row[row >= 0]
            where = f"query {query.q_start}, head {head}"
            if len(taken) != wanted or not np.isin(taken, candidates).all():
                raise RefcheckError(f"{where}: chunks {taken.tolist()} are not {wanted} of its candidates")
            left = np.setdiff1d(candidates, taken)
            if len(taken) and len(left):
                self._check_order(query.q[0, head].astype(np.float64), head, taken, left, where)

    def _check_order(self, q: Any, head: int, taken: Any, left: Any, where: str) -> None:
        scores = self._means[:, head] @ q
        # The bound of sparsemoc.testing.tolerance on a float32 score, for one query and nothing near the subnormals.
        bound = 1.01 * (self._counts + 1 + len(q) + 18) * 2.0**-24 * (self._sizes[:, head] @ np.abs(q))
        if (scores[left] - bound[left]).max() > (scores[taken] + bound[taken]).min():
            raise RefcheckError(f"{where}: a chunk with a lower score was taken")


def check_gradients(case: Case, backend: str, config: Any = None) -> dict[str, Any]:
    """Check dq, dk and dv whole on a small copy of a case.

    Raises:
        RefcheckError: a value is wrong.
    """
    small = case.shrunk(min(SMALL_TOKENS, case.tokens), min(SMALL_HEADS, case.heads))
    given, spec = inputs(small), small.spec()
    grads = moc.attention_grads(given.q, given.k, given.v, spec, given.d_out, backend=backend, config=config)
    layout = moc.route(given.q, given.k, spec, backend=backend, config=config)
    sample = Sample(spec, small.stream(), given.q[0], given.k[0], given.v[0])
    mask = oracle.mask_of(sample, layout.selected[0])
    got = {name: grad[0] for name, grad in zip(("dq", "dk", "dv"), grads, strict=True)}
    errors = {name: Error() for name in got}
    _compare_masked(sample, mask, got, given.d_out[0], errors)
    return {"tokens": small.tokens, "heads": small.heads, **_judged(f"{case.name} (small)", errors)}


def check_identities(case: Case, given: Inputs, grads: tuple[Floats, Floats, Floats]) -> dict[str, float]:
    """Check the two identities that hold whatever was routed, as long as every query sees a key.

    Raises:
        RefcheckError: the sides differ.
    """
    dq, dk, dv = (grad.astype(np.float64) for grad in grads)
    paid = np.abs(given.d_out).sum((0, 1), np.float64)
    values = np.abs(dv.sum((0, 1)) - given.d_out.sum((0, 1), np.float64)) / paid
    queries, keys = given.q * dq, given.k * dk
    products = np.abs(queries.sum((0, 1, 3)) - keys.sum((0, 1, 3))) / np.abs(queries).sum((0, 1, 3))
    found = {"sum_dv": float(values.max()), "q_dq_k_dk": float(products.max())}
    for name, difference in found.items():
        if not difference <= IDENTITY:
            raise RefcheckError(f"{case.name}: the sides of {name} differ by {difference:.3g} of their size")
    return found
