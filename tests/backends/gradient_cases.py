"""Gradients that a GPU backend's kernels are held to, for selections and results that the reference backend makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from sparsemoc.spec.anchors import Window
from sparsemoc.spec.chunks import Chunks
from sparsemoc.testing import checks
from sparsemoc.testing.implementations import ApiImplementation, Forward
from sparsemoc.testing.problems import Problem
from tests.backends.attention_cases import problem_of

#: Runs the backward of a problem: (problem, result of the forward) -> (dq, dk, dv), packed without the batch axis.
Run = Callable[[Problem, Forward], tuple[Any, Any, Any]]
#: One number of one row that is not finite: array, number.
SPOILERS = (
    ("q", np.nan), ("q", np.inf), ("k", np.nan), ("k", -np.inf), ("v", np.nan), ("d_out", np.nan), ("d_out", np.inf),
)  # fmt: skip


class Backward:
    """A backward behind the forward of the reference backend, as the checks want it."""

    name = "backward"

    def __init__(self, run: Run) -> None:
        self.run = run

    def forward(self, problem: Problem) -> Forward:
        with np.errstate(all="ignore"):
            return ApiImplementation("reference").forward(problem)

    def backward(self, problem: Problem) -> tuple[Any, Any, Any]:
        return self.run(problem, self.forward(problem))


def check(run: Run, problem: Problem) -> None:
    """Hold a backward to the oracle."""
    with np.errstate(all="ignore"):
        checks.check_backward(cast("Any", Backward(run)), problem)


def check_padding(run: Run, problem: Problem) -> None:
    """NaN in the padding of q, k, v, d_out and d_lse changes no bit, and gives gradients of 0."""
    spoiled, rows, keys = _with_nan_in_the_padding(problem)
    before, after = (Backward(run).backward(one) for one in (problem, spoiled))
    for x, y, padding in zip(before, after, (rows, keys, keys), strict=True):
        assert checks.same_bits(x, y)
        assert (y[padding].astype(np.float32) == 0).all()


def _with_nan_in_the_padding(problem: Problem) -> tuple[Problem, Any, Any]:
    """Return the problem with NaN for all that is padding, and which rows and keys are."""
    arrays, samples = problem.arrays, problem.samples()
    join = np.concatenate if problem.packed else np.stack
    of_rows = join([~sample.valid_queries for sample in samples])
    of_keys = join([~sample.valid for sample in samples])

    def spoiled(x: Any, padding: Any) -> Any:
        x = x.copy()
        x[padding] = np.nan
        return x

    d_lse = np.swapaxes(spoiled(np.swapaxes(arrays.d_lse, -1, -2), of_rows), -1, -2)
    changes = {name: spoiled(getattr(arrays, name), of_rows) for name in ("q", "d_out")}
    changes |= {name: spoiled(getattr(arrays, name), of_keys) for name in ("k", "v")}
    # "broadcast" arrays hold one head, and NaN is not in all of them.
    return problem.but(strides="plain").with_arrays(**changes, d_lse=d_lse), of_rows, of_keys


def check_spoiler(run: Run, which: str, bad: float, causal: str) -> None:
    """A number that is not finite: gradients that no pair connects with it are those without it."""
    problem = problem_of(
        anchors=(Window(2),),
        chunks=Chunks(size=4),
        top_k=1,
        causal=causal,
        dense_queries=(),
        v_head_dim=8,
        dtype="bfloat16",
    )
    result = Backward(run).forward(problem)
    x = getattr(problem.arrays, which).copy()
    x[0, 9, 0, 3] = bad
    spoiled = problem.with_arrays(**{which: x})
    with np.errstate(all="ignore"):
        out, lse = ApiImplementation("reference").attend(spoiled, result.selected)
        before, after = run(problem, result), run(spoiled, Forward(out, lse, result.selected, np.zeros(0, bool)))
    mask = checks.oracle_masks(problem, result.selected)[0]
    rows, keys = touched(mask, which, 9)
    for name, x, y in zip(("dq", "dk", "dv"), before, after, strict=True):
        free = ~rows if name == "dq" else ~keys
        assert checks.same_bits(x[0][free], y[0][free]), name
        assert free.any()
    if which == "d_out":
        # The number itself: its column of dv, of the keys that its row sees, and of no other.
        there = ~np.isfinite(after[2][0, :, 0].astype(np.float32))
        assert np.array_equal(there[:, 3], mask[0, 9])
        assert not np.delete(there, 3, axis=1).any()


def touched(mask: Any, which: str, at: int) -> tuple[Any, Any]:
    """Return (rows, heads) and (keys, 1): whom a row of q or d_out, or a key, of head 0 reaches through pairs."""
    rows = np.zeros(mask.shape[:2], bool)
    if which in ("q", "d_out"):
        rows[0, at] = True
    else:
        rows = mask[:, :, at]
    keys = (mask & rows[:, :, None]).any(axis=(0, 1))
    return rows.T, keys[:, None]


def check_alone(run: Run) -> None:
    """A sample's gradients do not depend on the others of its batch."""
    problem = problem_of(batch=2, dtype="bfloat16", heads=4, kv_heads=2)
    names = ("q", "k", "v", "d_out", "d_lse")
    first = problem.but(batch=1).with_arrays(**{name: getattr(problem.arrays, name)[:1] for name in names})
    for x, y in zip(Backward(run).backward(problem), Backward(run).backward(first), strict=True):
        assert checks.same_bits(x[:1], y)
