"""A backend whose configs are as fast, and as right, as a test says; its clock is a script: nothing is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from sparsemoc.backends import Backend, Problem
from sparsemoc.backends.protocol import Estimate, Hardware, Operation
from sparsemoc.backends.reference import BACKEND as REFERENCE
from sparsemoc.frameworks import execution
from sparsemoc.testing.implementations import ApiImplementation
from sparsemoc.testing.problems import Problem as Drawn
from sparsemoc.tuning.work import Work

#: What a fault does to the results of an operation, a tuple; it may raise.
Fault = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class PlantedConfig:
    """Which of the planted configs; 0 is the default."""

    number: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.number, int):
            raise TypeError("number must be an int")


@dataclass(eq=False)
class Planted:
    """A backend that computes as `base` does, and then what the fault of its config makes of it.

    Attributes:
        seconds: of a call by config, in turn where there are several; its length is the search space.
        faults, predicted, refused: by config, what it does wrong, and what the cost model says.
        operations: those that have more than the default to try.
        calls: (operation, config) in order; elapsed: seconds by the script.
    """

    seconds: dict[int, Any] = field(default_factory=lambda: {0: 1.0, 1: 0.5})
    faults: dict[int, Fault] = field(default_factory=dict)
    predicted: dict[int, float] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    operations: tuple[str, ...] = ("pool", "route", "attend", "attend_backward")
    base: Backend = REFERENCE
    calls: list[tuple[str, int]] = field(default_factory=list)
    elapsed: float = 0.0
    name: str = "planted"

    def __post_init__(self) -> None:
        self.capabilities = self.base.capabilities
        self._turn: dict[int, int] = {}
        self._known: dict[Any, Any] = {}

    def refuses(self, problem: Problem) -> str | None:
        return None

    def version(self) -> str:
        return "planted 1"

    def hardware(self, problem: Problem) -> Hardware:
        return Hardware("toy", "toy")

    def estimate(self, problem: Problem, operation: Operation, config: Any) -> Estimate:
        return Estimate(self.predicted.get(config.number), self.refused.get(config.number))

    def default_config(self, problem: Problem) -> PlantedConfig:
        return PlantedConfig()

    def search_space(self, problem: Problem, operation: Operation) -> list[PlantedConfig]:
        return [PlantedConfig(number=n) for n in self.seconds if n == 0 or operation in self.operations]

    def pool(self, *arguments: Any, config: Any = None) -> Any:
        return self._run("pool", arguments, config)

    def route(self, *arguments: Any, config: Any = None) -> Any:
        return self._run("route", arguments, config)

    def attend(self, *arguments: Any, config: Any = None) -> Any:
        return self._run("attend", arguments, config)

    def attend_backward(self, *arguments: Any, config: Any = None) -> Any:
        return self._run("attend_backward", arguments, config)

    def _run(self, operation: str, arguments: Any, config: Any) -> Any:
        number = 0 if config is None else config.number
        self.calls.append((operation, number))
        script = self.seconds[number]
        if isinstance(script, (tuple, list)):
            turn = self._turn[number] = self._turn.get(number, -1) + 1
            script = script[turn % len(script)]
        self.elapsed += script
        key = operation, tuple(map(id, arguments))
        if key not in self._known:  # with the arguments, so that no other gets their addresses
            self._known[key] = arguments, getattr(self.base, operation)(*arguments)
        results = self._known[key][1]
        return self.faults[number](results) if number in self.faults else results


@dataclass
class ScriptedClock:
    """Reads the script of a planted backend; a call that is repeated takes as long each time."""

    backend: Planted
    turn_s: float = 0.0

    def now(self) -> float:
        return self.backend.elapsed

    def seconds(self, call: Callable[[], object], times: int) -> float:
        start = self.now()
        call()
        once = self.now() - start
        self.backend.elapsed += once * (times - 1)
        return once


def works(problem: Drawn, backend: Any) -> dict[str, Work]:
    """Return the operations of a call of the API and of its gradients, as a backend is given them."""
    # Problems are equal where their recipes are, whatever arrays they were given.
    found = _works(problem) if problem.given is None else _works.__wrapped__(problem)
    return {name: replace(work, backend=backend) for name, work in found.items()}


@lru_cache
def _works(problem: Drawn) -> dict[str, Work]:
    found: dict[str, Work] = {}

    def keep(work: Work, explicit: Any) -> Any:
        found[work.operation] = work
        return None

    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(execution, "config_for", keep)
        implementation = ApiImplementation(REFERENCE)
        implementation.forward(problem)
        implementation.backward(problem)
    return found
