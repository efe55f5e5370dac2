"""A backend made ready: the arrays where it wants them, and each operation as a call under its config."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from bench.micro import sizes
from sparsemoc.backends import Backend, Problem, Result, available_backends, get_backend
from sparsemoc.backends.protocol import Operation
from sparsemoc.spec.layout import Layout
from sparsemoc.testing.libraries import library
from sparsemoc.tuning.problems import NamedProblem
from sparsemoc.tuning.resolve import resolve
from sparsemoc.tuning.work import Work


class Step(NamedTuple):
    """One step as it is called, and the config it runs under.

    Attributes:
        call: makes the result, and waits for the device.
        work: the operation whose config holds.
        config: that config.
        source: where it comes from, see `tuning.resolve`.
    """

    call: Callable[[], Any]
    work: Work
    config: Any
    source: str


@dataclass(frozen=True, eq=False)
class Ready:
    """A backend with the arrays of a problem."""

    backend: Backend
    size: str
    dtype: str
    framework: str
    device: str

    @cached_property
    def named(self) -> NamedProblem:
        """The problem."""
        return sizes.problem(self.size)

    @cached_property
    def given(self) -> sizes.Given:
        """Its arrays, in NumPy."""
        return sizes.given(self.size, self.dtype)

    @property
    def scale(self) -> float:
        """The factor on the logits."""
        return float(self.named.head_dim**-0.5)

    @cached_property
    def layout(self) -> Layout:
        """The routes that attention is given, where the backend wants them."""
        return Layout(self.give(self.given.selected), self.named.plan())

    @cached_property
    def qkv(self) -> tuple[Any, Any, Any]:
        """Return q, k and v where the backend wants them."""
        x = self.given.arrays
        return self.give(x.q), self.give(x.k), self.give(x.v)

    @cached_property
    def pairs(self) -> int:
        """(head, query, key) triples that are attended to."""
        return Layout(self.given.selected, self.named.plan()).pairs()

    @cached_property
    def candidates(self) -> int:
        """(query, chunk) pairs that are scored, of one head."""
        sample = self.named.plan().samples[0]
        width = np.add.reduceat(sample.candidate_hi - sample.candidate_lo, sample.candidate_ptr[:-1])
        return int((width * (sample.group_hi - sample.group_lo)).sum())

    def give(self, array: np.ndarray) -> Any:
        """Return a NumPy array as the backend takes it."""
        return self._library.give(array)

    def take(self, array: Any) -> np.ndarray:
        """Return an array of the backend's as NumPy's."""
        taken: np.ndarray = self._library.take(array)
        return taken

    @cached_property
    def _library(self) -> Any:
        return library(self.framework, self.device if self.framework == "torch" else None)

    def waiting(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Return a call that ends when the device has done it: launches return before they have."""
        if self.device != "cuda":
            return call
        import torch

        def waited() -> Any:
            result = call()
            torch.cuda.synchronize()
            return result

        return waited

    def step(self, operation: Operation, call: Callable[[Problem, Any], Any] | None = None) -> Step:
        """Return an operation, or a part of it, as a call.

        Args:
            operation: which.
            call: what to call in its place, given the problem and the config.
        """
        problem = sizes.asked(self.named, self.dtype, self.framework, self.device, operation == "attend_backward")
        work = Work(self.backend, problem, operation, self._arguments(operation))
        found = resolve(self.backend, problem, operation)
        config = self.backend.default_config(problem) if found.config is None else found.config
        run = (lambda: work.run(config)) if call is None else (lambda: call(problem, config))
        return Step(self.waiting(run), work, config, found.source)

    def _arguments(self, operation: Operation) -> tuple[Any, ...]:
        q, k, v = self.qkv
        if operation == "pool":
            return k, None
        if operation == "route":
            return q, self.give(self.given.centroids), None, None
        if operation == "attend":
            return q, k, v, self.layout, self.scale
        result = Result(self.give(self.given.out), self.give(self.given.lse))
        return q, k, v, self.layout, self.scale, result, self.give(self.given.arrays.d_out), None


def place(name: str, dtype: str, size: str) -> tuple[str, str] | str:
    """Return the library and the device on which a backend is measured, or why it is not."""
    if (reason := available_backends()[name]) is not None:
        return reason
    capabilities = get_backend(name).capabilities
    framework = next((one for one in ("numpy", "torch") if one in capabilities.frameworks), None)
    if framework is None:
        return f"takes {', '.join(capabilities.frameworks)} arrays, which are not made here"
    device = "cuda" if framework == "torch" and "cuda" in capabilities.devices and _cuda() else "cpu"
    problem = sizes.asked(sizes.problem(size), dtype, framework, device, True)
    if (reason := get_backend(name).refuses(problem)) is not None:
        return reason
    if size != sizes.TINY and framework == "torch" and device == "cpu":
        return "would be interpreted, for minutes a call: --tiny tries it"
    if size == sizes.LARGE and name == "reference":
        return "takes one query at a time, minutes a call at this size"
    return framework, device


def _cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())
