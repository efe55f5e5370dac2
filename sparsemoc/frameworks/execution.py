"""A backend at work on a call: the caller's arrays go in and come out, in whatever library the backend takes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sparsemoc.backends import Backend, Problem, Randomness, Result, choose
from sparsemoc.backends.protocol import Operation
from sparsemoc.frameworks import Framework
from sparsemoc.spec.errors import SpecError, describe
from sparsemoc.spec.layout import Layout
from sparsemoc.tuning.session import config_for
from sparsemoc.tuning.work import Work

Array = Any


@dataclass(frozen=True)
class Execution:
    """The backend chosen for a call, which is given arrays and gives arrays of the caller's library.

    Attributes:
        framework: of the caller's arrays.
        backend: what computes.
        problem: as the backend is told of it; `problem.framework` is the library in which it gets the arrays.
        config: the backend's tunables as the caller gave them; None for those that tuning knows, or the default.
    """

    framework: Framework
    backend: Backend
    problem: Problem
    config: Any

    @classmethod
    def choose(cls, function: str, framework: Framework, problem: Problem, backend: Any, config: Any) -> Execution:
        """Return the execution by a backend: by name, as an object, or the first that can where it is "auto".

        Raises:
            UnsupportedError: the backend, with "auto" every backend, refuses.
            SpecError: the class of a backend, or a config that is not the backend's own.
        """
        if isinstance(backend, type):
            raise SpecError(
                f"{function}: backend must be a name or a Backend object, got the class {backend.__name__}."
            )
        chosen = choose(problem, backend, function)
        shown = problem.shown_to(chosen.capabilities)
        if config is not None:
            wanted = type(chosen.default_config(shown))
            if not isinstance(config, wanted):
                raise SpecError(
                    f'{function}: config must be a {wanted.__name__} for backend "{chosen.name}", or None, '
                    f"got {describe(config)}."
                )
        return cls(framework, chosen, shown, config)

    @cached_property
    def line(self) -> str:
        """The execution as one line of text, see `portable`: what stands for it in graphs. Written once for a call."""
        from sparsemoc.frameworks.portable import line_of  # here, since it builds executions

        return line_of(self)

    def pool(self, k: Array, key_lengths: Array | None) -> Array:
        """Return the mean key of each chunk, see `Backend.pool`."""
        return self.framework.pool(self, k, key_lengths)

    def route(self, q: Array, centroids: Array, key_lengths: Array | None, randomness: Randomness | None) -> Layout:
        """Return which chunks each query takes."""
        selected = self.framework.route(self, q, centroids, key_lengths, randomness)
        return Layout(selected, self.problem.plan, key_lengths)

    def attend(self, q: Array, k: Array, v: Array, layout: Layout, scale: float) -> Result:
        """Return out and lse, differentiable where the caller's library records gradients."""
        return self.framework.attend(self, q, k, v, layout, scale)

    def backward(self, *given: Any) -> tuple[Array, Array, Array]:
        """Return dq, dk, dv of the arguments of `compute_backward`."""
        return self.framework.backward(self, *given)

    def compute_pool(self, k: Array, key_lengths: Array | None) -> Array:
        """Return the mean key of each chunk, by the backend."""
        return self.framework.own(self._run("pool", self._shown(k), self._shown(key_lengths)), k)

    def compute_route(
        self, q: Array, centroids: Array, key_lengths: Array | None, randomness: Randomness | None
    ) -> Array:
        """Return `Layout.selected`, by the backend."""
        show = self._shown
        if randomness is not None and not isinstance(randomness.seed, int):
            randomness = replace(randomness, seed=show(randomness.seed))
        selected = self._run("route", show(q), show(centroids), show(key_lengths), randomness)
        return self.framework.own(selected, q)

    def compute_forward(self, q: Array, k: Array, v: Array, layout: Layout, scale: float) -> Result:
        """Return out and lse, by the backend, without a record of gradients."""
        show = self._shown
        result = self._run("attend", show(q), show(k), show(v), self._shown_layout(layout), scale)
        return Result(*(self.framework.own(array, q) for array in result))

    def compute_backward(
        self,
        q: Array,
        k: Array,
        v: Array,
        layout: Layout,
        scale: float,
        result: Result,
        d_out: Array,
        d_lse: Array | None,
    ) -> tuple[Array, Array, Array]:
        """Return dq, dk, dv, by the backend."""
        show = self._shown
        grads = self._run(
            "attend_backward",
            show(q),
            show(k),
            show(v),
            self._shown_layout(layout),
            scale,
            Result(*map(show, result)),
            show(d_out),
            show(d_lse),
        )
        dq, dk, dv = (self.framework.own(grad, q) for grad in grads)
        return dq, dk, dv

    def _run(self, operation: Operation, *arguments: Any) -> Any:
        """Return what the backend gives, under the caller's config or the one that is known to be fastest."""
        work = Work(self.backend, self.problem, operation, arguments)
        return work.run(config_for(work, self.config))

    def _shown(self, array: Array) -> Array:
        return None if array is None else self.framework.show(array, self.problem.framework)

    def _shown_layout(self, layout: Layout) -> Layout:
        """Return a layout for the backend."""
        if self.problem.framework == self.framework.NAME:
            return layout
        return Layout(self._shown(layout.selected), layout.plan, self._shown(layout.key_lengths))
