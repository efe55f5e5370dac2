"""The comparisons with the oracle: structure, selection, outputs, gradients. Each raises MismatchError."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsemoc.testing import oracle, oracle_random, tolerance
from sparsemoc.testing.implementations import Forward, Implementation
from sparsemoc.testing.oracle_rules import Bools, Routes
from sparsemoc.testing.problems import Problem, dtype_of
from sparsemoc.testing.sample import Floats, Sample


class MismatchError(AssertionError):
    """An implementation broke a property."""


def expect(condition: bool | np.bool_, message: str) -> None:
    """Raise `MismatchError` unless the condition holds. Unlike `assert`, it also works under python -O."""
    if not condition:
        raise MismatchError(message)


def same_bits(x: Floats, y: Floats) -> bool:
    """Return whether two arrays hold the same numbers, NaN for NaN, 0 and -0 apart."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    return np.ascontiguousarray(x).tobytes() == np.ascontiguousarray(y).tobytes() or (
        np.array_equal(np.isnan(x), np.isnan(y))
        and bool(np.array_equal(np.nan_to_num(x), np.nan_to_num(y)) and np.array_equal(np.signbit(x), np.signbit(y)))
    )


def pieces(problem: Problem, array: Any, axis: int) -> list[Any]:
    """Cut a result into samples: along the batch axis, or, packed, along `axis`, the one of the tokens."""
    if not problem.packed:
        return list(array)
    ends = np.cumsum([stream.tokens for stream in problem.streams])[:-1]
    return np.split(array, ends, axis=axis)


def selections(problem: Problem, selected: Routes) -> list[Routes]:
    """Cut `selected` into samples, (heads, queries, slots) each."""
    return pieces(problem, selected[0] if problem.packed else selected, 1)


def masks(problem: Problem, mask: Bools) -> list[Bools]:
    """Cut a layout's mask into samples; packed, everything off the block diagonal must be False."""
    if not problem.packed:
        return list(mask)
    found, rest, start = [], mask[0].copy(), 0
    for stream in problem.streams:
        own = slice(start, start + stream.tokens)
        found.append(mask[0, :, own, own])
        rest[:, own, own] = False
        start += stream.tokens
    expect(not rest.any(), "the layout lets one packed sample see another")
    return found


def check_structure(problem: Problem, got: Forward) -> None:
    """Shapes, dtypes, and rows of `selected` that ascend and end in -1."""
    arrays, dtype = problem.arrays, dtype_of(problem.dtype)
    lse_shape = (*arrays.q.shape[:-3], problem.heads, problem.queries)
    slots = problem.samples()[0].slots
    shape = (problem.batch, problem.heads, problem.queries, slots)
    lse_dtype = np.float64 if problem.dtype == "float64" else np.float32
    for name, x, wanted, kind in (
        ("out", got.out, (*arrays.q.shape[:-1], problem.v_head_dim), dtype),
        ("lse", got.lse, lse_shape, lse_dtype),
        ("selected", got.selected, shape, np.int32),
    ):
        expect(x.shape == wanted, f"{name} must have shape {wanted}, got {x.shape}")
        expect(x.dtype == kind, f"{name} must be {kind}, got {x.dtype}")
    before, after = got.selected[..., :-1], got.selected[..., 1:]
    expect(((after > before) | (after == -1)).all(), "selected does not ascend, or goes on after a -1")


def check_selection(implementation: Implementation, problem: Problem) -> None:
    """Without dropout: R holds min(top_k, |C|) candidates, and nothing left out surely precedes anything taken."""
    problem = problem.but(training=False, seed=None)
    got = implementation.forward(problem)
    check_structure(problem, got)
    for sample, selected in zip(problem.samples(), selections(problem, got.selected), strict=True):
        check_sample_selection(sample, selected)


def check_sample_selection(sample: Sample, selected: Routes) -> None:
    """Check the selection of one sample without dropout."""
    table = tolerance.scores_of(sample)
    routed = np.zeros(sample.q_tokens, bool)
    for number, unit in enumerate(sample.units):
        members = list(unit.queries)
        routed[members] = True
        rows = selected[:, members]
        expect((rows == rows[:, :1]).all(), f"the queries {members} share a unit, but not a selection")
        candidates = np.flatnonzero(sample.candidates[number]).tolist()
        for head in range(sample.heads):
            taken = [int(chunk) for chunk in rows[head, 0] if chunk >= 0]
            _check_row(sample, table, (head, number), candidates, taken)
    expect((selected[:, ~routed] == -1).all(), "a dense or invalid query has routes")


def _check_row(
    sample: Sample, table: tolerance.Scores, row: tuple[int, int], candidates: list[int], taken: list[int]
) -> None:
    head, unit = row
    where = f"head {head}, queries {sample.units[unit].queries}: took {taken} of the candidates {candidates}"
    expect(set(taken) <= set(candidates), f"{where}: not all are candidates")
    count = min(sample.top_k[head], len(candidates))
    expect(len(taken) == count, f"{where}: min(top_k, candidates) is {count}")
    left = [chunk for chunk in candidates if chunk not in taken]
    wrong = table.precedes(head, unit, left, taken)
    if wrong.any():
        first, second = (int(index[0]) for index in np.nonzero(wrong))
        better, worse = left[first], taken[second]
        s, b = table.values[head, unit], table.bounds[head, unit]
        raise MismatchError(
            f"{where}: chunk {better} must precede chunk {worse}, "
            f"scores {s[better]!r} and {s[worse]!r}, bounds {b[better]:.3g} and {b[worse]:.3g}"
        )


def check_dropout(implementation: Implementation, problem: Problem) -> None:
    """With dropout: exactly what the random words make of the routes that the same call takes without training."""
    dropout = problem.spec.dropout
    if dropout is None or not problem.training or problem.seed is None:
        return
    plain = implementation.forward(problem.but(training=False, seed=None))
    got = implementation.forward(problem)
    check_structure(problem, got)
    before, after = selections(problem, plain.selected), selections(problem, got.selected)
    for sample, routes, found in zip(problem.samples(), before, after, strict=True):
        wanted = np.full_like(found, -1)
        for number, unit in enumerate(sample.units):
            candidates = np.flatnonzero(sample.candidates[number]).tolist()
            for head in range(sample.heads):
                row = routes[head, unit.queries[0]]
                place = (sample.batch, sample.head_start + head, unit.first)
                kept = oracle_random.drop(dropout, row[row >= 0].tolist(), candidates, place, problem.seed)
                wanted[head, list(unit.queries), : len(kept)] = kept
        wrong = np.argwhere((wanted != found).any(axis=2))
        expect(
            not len(wrong),
            f"dropout: at (head, query) {wrong[:1].tolist()} the random words give "
            f"{[wanted[h, i].tolist() for h, i in wrong[:1]]}, got {[found[h, i].tolist() for h, i in wrong[:1]]}",
        )


def check_forward(implementation: Implementation, problem: Problem) -> None:
    """The layout's mask, out and lse are the oracle's for the implementation's own selection."""
    got = implementation.forward(problem)
    check_structure(problem, got)
    wanted = oracle_masks(problem, got.selected)
    for number, (claimed, mask) in enumerate(zip(masks(problem, got.mask), wanted, strict=True)):
        wrong = np.argwhere(claimed != mask)
        expect(
            not len(wrong), f"sample {number}: the layout's mask is wrong at (head, query, key) {wrong[:3].tolist()}"
        )
    check_output(problem, wanted, got.out, got.lse)


def oracle_masks(problem: Problem, selected: Routes) -> list[Bools]:
    """Return the oracle's mask of each sample for a given selection."""
    rows = selections(problem, selected)
    return [oracle.mask_of(sample, row) for sample, row in zip(problem.samples(), rows, strict=True)]


def check_output(problem: Problem, wanted: list[Bools], out: Floats, lse: Floats, slack: float = 1.0) -> None:
    """Out and lse stay within the budget (times `slack`) of attention under given masks; empty rows are 0 and -inf."""
    d_outs, d_lses = pieces(problem, problem.arrays.d_out, 0), pieces(problem, problem.arrays.d_lse, 1)
    outs, lses = pieces(problem, out, 0), pieces(problem, lse, 1)
    for number, sample in enumerate(problem.samples()):
        empty = ~wanted[number].any(axis=2)
        expect((outs[number].swapaxes(0, 1)[empty] == 0).all(), f"sample {number}: out of an empty row is not 0")
        expect((lses[number][empty] == -np.inf).all(), f"sample {number}: lse of an empty row is not -inf")
        budget = Budget(problem, sample, wanted[number], d_outs[number], d_lses[number])
        budget.check("out", outs[number], slack)
        budget.check("lse", lses[number], slack)


def check_backward(implementation: Implementation, problem: Problem) -> None:
    """dq, dk, dv stay within the budget of the oracle's gradients for the implementation's own selection."""
    selected = implementation.forward(problem).selected
    wanted = oracle_masks(problem, selected)
    grads = implementation.backward(problem)
    for name, x, like in zip(("dq", "dk", "dv"), grads, ("q", "k", "v"), strict=True):
        input_ = getattr(problem.arrays, like)
        expect(x.shape == input_.shape, f"{name} must have shape {input_.shape}, got {x.shape}")
        expect(x.dtype == input_.dtype, f"{name} must be {input_.dtype}, got {x.dtype}")
    d_outs, d_lses = pieces(problem, problem.arrays.d_out, 0), pieces(problem, problem.arrays.d_lse, 1)
    cut = [pieces(problem, grad, 0) for grad in grads]
    for number, sample in enumerate(problem.samples()):
        budget = Budget(problem, sample, wanted[number], d_outs[number], d_lses[number])
        for name, parts in zip(("dq", "dk", "dv"), cut, strict=True):
            budget.check(name, parts[number])


class Budget:
    """The oracle's answer to one sample under a given mask, with what an answer in the problem's dtype may cost."""

    def __init__(self, problem: Problem, sample: Sample, mask: Bools, d_out: Floats, d_lse: Floats) -> None:
        self.sample, self.dtype = sample, problem.dtype
        working = np.float64 if problem.dtype == "float64" else np.float32
        self.truth = tolerance.dense(sample, mask, d_out, d_lse, np.float64)
        self.reference = tolerance.rounded(tolerance.dense(sample, mask, d_out, d_lse, working), problem.dtype)
        u_acc = tolerance.unit_roundoff(problem.dtype)
        self.magnitude = tolerance.magnitudes(sample, mask, d_out, d_lse, u_acc)

    def check(self, name: str, x: Floats, slack: float = 1.0) -> None:
        """Check one result: NaN and infinity exactly where the oracle has them, the rest within the budget."""
        truth, magnitude = getattr(self.truth, name), getattr(self.magnitude, name)
        wide = x.astype(np.float64)
        expect(x.shape == truth.shape, f"{name} must have shape {truth.shape}, got {x.shape}")
        wrong = np.argwhere(np.isnan(wide) != np.isnan(truth))
        expect(
            not len(wrong), f"{name}: NaN is misplaced at {wrong[:3].tolist()}, got {[x[tuple(i)] for i in wrong[:3]]}"
        )
        most = tolerance.limits(x.dtype)[1]
        with np.errstate(invalid="ignore"):
            wrong = np.argwhere(np.isinf(wide) & (np.abs(truth) < most) & np.isfinite(magnitude))
        expect(not len(wrong), f"{name}: infinite at {wrong[:3].tolist()}")
        reference = tolerance.error(getattr(self.reference, name), truth, magnitude)
        band = tolerance.band(self.sample, name, self.dtype)
        found, budget = tolerance.error(x, truth, magnitude), slack * (2 * reference + band)
        expect(
            found <= budget,
            f"{name} ({self.dtype}): error {found:.3g} exceeds the budget {budget:.3g} "
            f"= {slack:g} * (2 * {reference:.3g} of the dense computation + band {band:.3g}), by magnitude",
        )
