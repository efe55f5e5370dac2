"""What the suite tests: an `Implementation` answers problems. A backend does so through `sparsemoc.api`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sparsemoc.testing.oracle_rules import Bools, Routes
from sparsemoc.testing.problems import Problem
from sparsemoc.testing.sample import Floats


@dataclass(frozen=True, eq=False)
class Forward:
    """The answer to a problem, tokens before heads.

    Attributes:
        out: (batch, queries, heads, v_head_dim), packed without a batch axis.
        lse: (batch, heads, queries), packed without a batch axis.
        selected: int32 (batch, heads, queries, slots); packed: batch 1.
        mask: (batch, heads, queries, keys), what the layout claims to keep; packed: batch 1, block diagonal.
        layout: the Layout, where there is one.
    """

    out: Floats
    lse: Floats
    selected: Routes
    mask: Bools
    layout: Any = None


class Implementation(Protocol):
    """Something that can answer a problem. An UnsupportedError means that it refuses, and is no failure."""

    name: str

    def forward(self, problem: Problem) -> Forward:
        """Route and attend."""

    def attend(self, problem: Problem, selected: Routes) -> tuple[Floats, Floats]:
        """Return out and lse, as in `Forward`, for a given selection."""

    def backward(self, problem: Problem) -> tuple[Floats, Floats, Floats]:
        """Return dq, dk, dv for the problem's d_out and d_lse, shaped as q, k, v of `problem.arrays`."""

    def pool(self, problem: Problem) -> Floats:
        """Return centroids, float32 (batch, kv_heads, chunks, head_dim); packed: batch 1, the samples' end to end."""


class ApiImplementation:
    """A backend, called as users call it: `moc.attention(..., backend=backend)` and its kin.

    Args:
        backend: a name, or an object that is a `sparsemoc.backends.Backend`.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.name = backend if isinstance(backend, str) else backend.name

    def _arrays(self, problem: Problem) -> tuple[Floats, Floats, Floats]:
        arrays = problem.arrays
        return problem.present(arrays.q), problem.present(arrays.k), problem.present(arrays.v)

    def forward(self, problem: Problem) -> Forward:
        """Route and attend."""
        from sparsemoc import api

        out, lse, layout = api.attention(
            *self._arrays(problem),
            problem.spec,
            **problem.options(),
            backend=self.backend,
            return_lse=True,
            return_layout=True,
        )
        return Forward(problem.restore(out), lse, np.asarray(layout.selected), layout.dense_mask(), layout)

    def _plan(self, problem: Problem) -> Any:
        from sparsemoc.spec.plan import plan

        stream = problem.streams if problem.packed else problem.streams[0]
        q_tokens = None if problem.packed else problem.queries
        return plan(problem.spec, stream, q_start=problem.q_start, q_tokens=q_tokens)

    def layout(self, problem: Problem, selected: Routes) -> Any:
        """Return a Layout with a given selection."""
        from sparsemoc.spec.layout import Layout

        return Layout(selected, self._plan(problem), problem.key_length_array())

    def attend(self, problem: Problem, selected: Routes) -> tuple[Floats, Floats]:
        """Return out and lse for a given selection."""
        from sparsemoc import api

        out, lse = api.attend(
            *self._arrays(problem),
            self.layout(problem, selected),
            scale=problem.scale,
            axes=problem.axes,
            deterministic=problem.deterministic,
            backend=self.backend,
            return_lse=True,
        )
        return problem.restore(out), lse

    def backward(self, problem: Problem) -> tuple[Floats, Floats, Floats]:
        """Return dq, dk, dv."""
        from sparsemoc import api

        d_out, d_lse = problem.present(problem.arrays.d_out), problem.arrays.d_lse
        grads = api.attention_grads(
            *self._arrays(problem), problem.spec, d_out, d_lse=d_lse, **problem.options(), backend=self.backend
        )
        dq, dk, dv = (problem.restore(grad) for grad in grads)
        return dq, dk, dv

    def pool(self, problem: Problem) -> Floats:
        """Return the centroids of the problem's keys."""
        from sparsemoc import api

        return np.asarray(
            api.pool(
                problem.present(problem.arrays.k),
                self._plan(problem),
                key_lengths=problem.key_length_array(),
                axes=problem.axes,
                backend=self.backend,
            )
        )
