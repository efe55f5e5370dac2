"""What the suite tests: an `Implementation` answers problems. A backend does so through `sparsemoc.api`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from sparsemoc.testing.libraries import library
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
        framework: library of the arrays that it is given, "numpy", "cupy", "jax" or "torch"; by default NumPy if the
            backend takes it.
        device: torch device of the tensors; by default that of the GPU, the CPU where there is none.
    """

    def __init__(self, backend: Any, *, framework: str | None = None, device: str | None = None) -> None:
        self.backend = backend
        self.name = backend if isinstance(backend, str) else backend.name
        self._library = library(framework or _native(backend), device)

    def _given(self, problem: Problem, x: Floats) -> Any:
        return self._library.give(problem.present(x))

    def _arrays(self, problem: Problem) -> tuple[Any, Any, Any]:
        arrays = problem.arrays
        return self._given(problem, arrays.q), self._given(problem, arrays.k), self._given(problem, arrays.v)

    def _key_lengths(self, problem: Problem) -> Any:
        lengths = problem.key_length_array()
        return None if lengths is None else self._library.give(lengths)

    def _options(self, problem: Problem) -> dict[str, Any]:
        return {**problem.options(), "key_lengths": self._key_lengths(problem)}

    def _restored(self, problem: Problem, x: Any) -> Floats:
        return problem.restore(self._library.take(x))

    def forward(self, problem: Problem) -> Forward:
        """Route and attend."""
        from sparsemoc import api

        out, lse, layout = api.attention(
            *self._arrays(problem),
            problem.spec,
            **self._options(problem),
            backend=self.backend,
            return_lse=True,
            return_layout=True,
        )
        layout = layout.on_host()
        lse = self._library.take(lse)
        return Forward(self._restored(problem, out), lse, layout.selected, layout.dense_mask(), layout)

    def _plan(self, problem: Problem) -> Any:
        from sparsemoc.spec.plan import plan

        stream = problem.streams if problem.packed else problem.streams[0]
        q_tokens = None if problem.packed else problem.queries
        return plan(problem.spec, stream, q_start=problem.q_start, q_tokens=q_tokens)

    def layout(self, problem: Problem, selected: Routes) -> Any:
        """Return a Layout with a given selection."""
        from sparsemoc.spec.layout import Layout

        return Layout(self._library.give(selected), self._plan(problem), self._key_lengths(problem))

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
        return self._restored(problem, out), self._library.take(lse)

    def backward(self, problem: Problem) -> tuple[Floats, Floats, Floats]:
        """Return dq, dk, dv."""
        from sparsemoc import api

        d_out, d_lse = self._given(problem, problem.arrays.d_out), self._library.give(problem.arrays.d_lse)
        grads = api.attention_grads(
            *self._arrays(problem), problem.spec, d_out, d_lse=d_lse, **self._options(problem), backend=self.backend
        )
        dq, dk, dv = (self._restored(problem, grad) for grad in grads)
        return dq, dk, dv

    def pool(self, problem: Problem) -> Floats:
        """Return the centroids of the problem's keys."""
        from sparsemoc import api

        centroids = api.pool(
            self._given(problem, problem.arrays.k),
            self._plan(problem),
            key_lengths=self._key_lengths(problem),
            axes=problem.axes,
            backend=self.backend,
        )
        return self._library.take(centroids)


def _native(backend: Any) -> str:
    """Return the library of the arrays that a backend takes itself, NumPy's if it can."""
    from sparsemoc.backends import get_backend

    taken = (get_backend(backend) if isinstance(backend, str) else backend).capabilities.frameworks
    return "numpy" if "numpy" in taken else str(taken[0])
