"""Work: one operation of a backend on the arrays of a call, which any config can run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sparsemoc.backends import Backend, Problem
from sparsemoc.backends.protocol import Operation
from sparsemoc.tuning.key import Environment, Key, environment_of, key_of


@dataclass(frozen=True, eq=False)
class Work:
    """An operation with its arguments, those of the backend's method of that name after the problem."""

    backend: Backend
    problem: Problem
    operation: Operation
    arguments: tuple[Any, ...]

    def run(self, config: Any) -> Any:
        """Return what the operation gives under a config, None for the backend's default."""
        return getattr(self.backend, self.operation)(self.problem, *self.arguments, config=config)

    @cached_property
    def environment(self) -> Environment:
        """Where it runs."""
        return environment_of(self.backend, self.problem)

    @cached_property
    def key(self) -> Key:
        """Which results serve it."""
        return key_of(self.problem, self.operation)
